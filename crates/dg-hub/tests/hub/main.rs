//! The client against a hub on this machine.

mod silence;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use dg_core::ExitCode;
use dg_hub::{FileProgress, HubError, HubOptions, Progress, RepoId, cached, fetch};
use dg_testkit::HubServer;
use dg_testkit::hub::Repository;
use tempfile::TempDir;

const ID: &str = "someone/tiny-flux";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
const SHARD: &str = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors";
const SHARD_INDEX: &str = "transformer/diffusion_pytorch_model.safetensors.index.json";

/// What the pipeline needs of [`repository`], in the order of the alphabet.
const NEEDED: [&str; 16] = [
    "generation_config.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer_2/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    SHARD,
    SHARD_INDEX,
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

struct Hub {
    server: HubServer,
    cache: TempDir,
}

impl Hub {
    fn start() -> Self {
        Self { server: HubServer::start(repository()), cache: TempDir::new().expect("a temporary folder") }
    }

    fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: Some(self.server.endpoint()),
            cache_dir: Some(self.cache.path().to_owned()),
            ..HubOptions::default()
        }
    }

    fn offline(&self) -> HubOptions {
        HubOptions { local_files_only: true, ..self.options() }
    }

    fn fetch(&self) -> Result<PathBuf, HubError> {
        fetch(&id(), &self.options(), &())
    }

    fn fetch_error(&self) -> HubError {
        self.fetch().expect_err("this cannot be fetched")
    }

    /// The files that whole bodies were asked for, sorted.
    fn downloads(&self) -> Vec<String> {
        let whole = |request: &dg_testkit::hub::Request| matches!(request.range, Some((_, None)));
        let requests = self.server.take_requests();
        let prefix = format!("/{ID}/resolve/{COMMIT}/");
        let mut names: Vec<_> = requests
            .iter()
            .filter(|request| whole(request))
            .map(|request| request.path.strip_prefix(&prefix).unwrap_or(&request.path).to_owned())
            .collect();
        names.sort();
        names
    }

    /// Every path below the cache, sorted.
    fn tree(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).expect("it is a folder").flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    walk(&entry.path(), found);
                } else {
                    found.push(entry.path());
                }
            }
        }
        let mut found = Vec::new();
        walk(self.cache.path(), &mut found);
        found.sort();
        found
    }
}

fn id() -> RepoId {
    RepoId::parse(ID).expect("it is well formed")
}

fn repository() -> Repository {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for name in NEEDED {
        files.insert(name.to_owned(), format!("content of {name}").into_bytes());
    }
    let component = |name: &str| format!("\"{name}\": [\"library\", \"Class\"]");
    let names =
        ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"]
            .map(component);
    let index = format!(
        "{{\"_class_name\": \"FluxPipeline\", \"image_encoder\": [null, null], {}}}",
        names.join(", ")
    );
    files.insert("model_index.json".to_owned(), index.into_bytes());
    files.insert(SHARD_INDEX.to_owned(), shard_index("diffusion_pytorch_model-00002-of-00002.safetensors"));
    files.insert(SHARD.to_owned(), (0..50_000u32).map(|i| (i % 251) as u8).collect());
    for unwanted in [
        "README.md",
        "flux1-dev.safetensors",
        "ae.safetensors",
        "vae/other.safetensors",
        "tokenizer_2/spiece.model",
    ] {
        files.insert(unwanted.to_owned(), b"not wanted".to_vec());
    }
    Repository { id: ID.to_owned(), commit: COMMIT.to_owned(), files, ..Repository::default() }
}

fn shard_index(second: &str) -> Vec<u8> {
    serde_json::json!({ "weight_map": {
        "a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": second, "c": second,
    }})
    .to_string()
    .into_bytes()
}

fn sorted(names: &[&str]) -> Vec<String> {
    let mut names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    names.sort();
    names
}

#[test]
fn fetches_what_the_pipeline_needs_and_nothing_else() {
    let hub = Hub::start();
    let folder = hub.fetch().expect("it is served");
    assert_eq!(hub.downloads(), sorted(&NEEDED));
    assert!(
        folder.ends_with(format!("models--someone--tiny-flux/snapshots/{COMMIT}")),
        "{}",
        folder.display()
    );
    for (name, content) in repository().files {
        let found = std::fs::read(folder.join(&name)).ok();
        assert_eq!(found, NEEDED.contains(&name.as_str()).then_some(content), "{name}");
    }
    assert_eq!(hub.fetch().expect("it is served"), folder);
    assert!(hub.downloads().is_empty(), "a second fetch downloads nothing");
    assert!(hub.tree().iter().all(|path| path.extension().is_none_or(|extension| extension != "part")));
}

#[test]
fn progress_is_told_per_file() {
    #[derive(Default)]
    struct Recorder(RefCell<BTreeMap<String, (u64, u64, bool)>>);
    impl Progress for Recorder {
        fn advanced(&self, progress: FileProgress<'_>) {
            let seen = (progress.bytes_done, progress.bytes_total, false);
            self.0.borrow_mut().insert(progress.file.to_owned(), seen);
        }
        fn finished(&self, file: &str) {
            self.0.borrow_mut().get_mut(file).expect("it advanced before").2 = true;
        }
    }
    let hub = Hub::start();
    let recorder = Recorder::default();
    fetch(&id(), &hub.options(), &recorder).expect("it is served");
    let seen = recorder.0.into_inner();
    assert_eq!(seen.keys().cloned().collect::<Vec<_>>(), sorted(&NEEDED));
    assert!(seen.values().all(|(done, total, finished)| done == total && *finished), "{seen:?}");
    assert_eq!(seen[SHARD].1, 50_000);
}

#[test]
fn the_cache_alone_is_enough_once_it_is_whole() {
    let hub = Hub::start();
    let error = fetch(&id(), &hub.offline(), &()).expect_err("nothing is cached");
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    assert_eq!(error.exit(), ExitCode::Config);
    assert!(error.hint().contains("--local_files_only"));
    assert!(hub.server.take_requests().is_empty(), "no network was allowed");

    let folder = hub.fetch().expect("it is served");
    hub.server.take_requests();
    assert_eq!(fetch(&id(), &hub.offline(), &()).expect("it is cached"), folder);
    assert!(hub.server.take_requests().is_empty(), "no network was allowed");

    std::fs::remove_file(folder.join(SHARD)).expect("it was fetched");
    let error = fetch(&id(), &hub.offline(), &()).expect_err("a shard is missing");
    assert!(matches!(error, HubError::NotCached { .. }) && error.to_string().contains(SHARD), "{error}");
}

#[test]
fn an_unknown_name_is_not_found() {
    let hub = Hub::start();
    let other = RepoId::parse("nowhere/none").expect("it is well formed");
    let error = fetch(&other, &hub.options(), &()).expect_err("it is not served");
    assert!(matches!(error, HubError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("nowhere/none"), "{error}");
    assert_eq!(error.exit(), ExitCode::Config);
    let options = HubOptions { revision: Some("v9".to_owned()), ..hub.options() };
    let error = fetch(&id(), &options, &()).expect_err("there is no such revision");
    assert!(matches!(error, HubError::NotFound { .. }) && error.to_string().contains("v9"), "{error}");
}

#[test]
fn a_gated_model_says_what_to_do() {
    let hub = Hub::start();
    for (status, listing_too) in [(401, true), (403, false)] {
        hub.server.edit(|repository| {
            repository.deny_all = listing_too.then_some(status);
            repository.deny_files = Some(status);
        });
        let error = hub.fetch_error();
        assert!(matches!(&error, HubError::Gated { status: found, .. } if *found == status), "{error}");
        assert_eq!(error.exit(), ExitCode::Config);
        assert!(error.hint().contains("HF_TOKEN") && error.hint().contains(ID), "{}", error.hint());
    }
    let requests = hub.server.take_requests();
    assert!(requests.iter().all(|request| request.authorization.is_none()));
}

#[test]
fn the_token_is_sent() {
    let hub = Hub::start();
    let options = HubOptions { token: Some("hf_secret".to_owned()), ..hub.options() };
    fetch(&id(), &options, &()).expect("it is served");
    let requests = hub.server.take_requests();
    assert!(requests.iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_secret")));
}

#[test]
fn no_server_is_unreachable_unless_the_cache_has_it() {
    let hub = Hub::start();
    let folder = hub.fetch().expect("it is served");
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let options = HubOptions { endpoint: Some(format!("http://{free}")), ..hub.options() };
    assert_eq!(fetch(&id(), &options, &()).expect("the cache has it"), folder);
    let empty = TempDir::new().expect("a temporary folder");
    let options = HubOptions { cache_dir: Some(empty.path().to_owned()), ..options };
    let error = fetch(&id(), &options, &()).expect_err("nobody listens");
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert_eq!(error.exit(), ExitCode::Unreachable);
    assert!(error.to_string().contains(&free.to_string()), "{error}");
}

#[test]
fn a_busy_server_is_unreachable() {
    let hub = Hub::start();
    hub.server.edit(|repository| repository.deny_all = Some(503));
    assert_eq!(hub.fetch_error().exit(), ExitCode::Unreachable);
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let hub = Hub::start();
    hub.server.edit(|repository| {
        repository.cuts.insert(SHARD.to_owned(), (20_000, 1));
    });
    let folder = hub.fetch().expect("the second try has the rest");
    check_resumed(&hub, &folder, &[0, 20_000]);
}

#[test]
fn the_next_run_goes_on_where_the_last_one_gave_up() {
    let hub = Hub::start();
    hub.server.edit(|repository| {
        repository.cuts.insert(SHARD.to_owned(), (9_000, 3));
    });
    let error = hub.fetch_error();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(fetch(&id(), &hub.offline(), &()).is_err(), "half a model is no model");
    let folder = hub.fetch().expect("nothing breaks any more");
    check_resumed(&hub, &folder, &[0, 9_000, 18_000, 27_000]);
}

fn check_resumed(hub: &Hub, folder: &Path, expected: &[usize]) {
    assert_eq!(std::fs::read(folder.join(SHARD)).ok().as_ref(), repository().files.get(SHARD));
    let requests = hub.server.take_requests();
    let shard = requests.iter().filter(|request| request.path.ends_with(SHARD));
    let begins: Vec<_> =
        shard.filter_map(|request| request.range.filter(|range| range.1.is_none())).collect();
    assert_eq!(begins.iter().map(|range| range.0).collect::<Vec<_>>(), expected);
}

#[test]
fn a_part_that_is_too_long_is_thrown_away() {
    let hub = Hub::start();
    let content = &repository().files[SHARD];
    let blobs = hub.cache.path().join("models--someone--tiny-flux").join("blobs");
    std::fs::create_dir_all(&blobs).expect("a temporary folder");
    let part = blobs.join(dg_testkit::sha256_hex(content)).with_extension("part");
    std::fs::write(part, vec![7; content.len() + 5]).expect("a temporary folder");
    let folder = hub.fetch().expect("it is served");
    assert_eq!(std::fs::read(folder.join(SHARD)).ok().as_ref(), Some(content));
}

#[test]
fn a_revision_has_a_folder_of_its_own_and_shares_equal_files() {
    let hub = Hub::start();
    let first = hub.fetch().expect("it is served");
    hub.server.take_requests();
    hub.server.edit(|repository| {
        repository.commit = OTHER_COMMIT.to_owned();
        repository.revisions = vec!["refs/pr/7".to_owned()];
        repository.files.insert("vae/config.json".to_owned(), b"{}".to_vec());
    });
    let options = HubOptions { revision: Some("refs/pr/7".to_owned()), ..hub.options() };
    let second = fetch(&id(), &options, &()).expect("it is served");
    assert!(second.ends_with(OTHER_COMMIT) && first != second);
    let downloads = hub.downloads();
    assert_eq!(downloads, [format!("/{ID}/resolve/{OTHER_COMMIT}/vae/config.json")], "the rest is there");
    assert_eq!(std::fs::read(second.join("vae/config.json")).ok().as_deref(), Some(b"{}".as_slice()));
    assert_eq!(std::fs::read(second.join(SHARD)).ok().as_ref(), repository().files.get(SHARD));

    assert_eq!(fetch(&id(), &hub.offline(), &()).expect("main is cached"), first);
    let options = HubOptions { revision: Some("refs/pr/7".to_owned()), ..hub.offline() };
    assert_eq!(fetch(&id(), &options, &()).expect("it is cached"), second);
    let models = cached(&hub.offline());
    let revisions: Vec<_> =
        models.iter().map(|model| (model.revision.as_str(), model.path.as_path())).collect();
    assert_eq!(revisions, [("main", first.as_path()), ("refs/pr/7", second.as_path())]);
    assert!(models.iter().all(|model| model.complete && model.id == id() && model.bytes > 50_000));

    hub.server.take_requests();
    let options = HubOptions { revision: Some(COMMIT.to_owned()), ..hub.options() };
    assert_eq!(fetch(&id(), &options, &()).expect("it is cached"), first);
    assert!(hub.server.take_requests().is_empty(), "a commit that is here needs no hub");
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    for hostile in [
        "../../../evil.safetensors",
        "/evil.safetensors",
        "a/b.safetensors",
        "..",
        "x.bin",
        ".hidden.safetensors",
        "",
    ] {
        let hub = Hub::start();
        hub.server.edit(|repository| {
            repository.files.insert(SHARD_INDEX.to_owned(), shard_index(hostile));
            repository.extra_listing.push(format!("transformer/{hostile}"));
        });
        let error = hub.fetch_error();
        assert!(matches!(error, HubError::BadRepo { .. }), "{hostile}: {error}");
        assert!(error.to_string().contains(SHARD_INDEX), "{hostile}: {error}");
        assert!(hub.server.take_requests().iter().all(|request| !request.path.contains("evil")));
    }
}

#[test]
fn a_listing_cannot_lead_out_of_its_folder() {
    let hub = Hub::start();
    hub.server.edit(|repository| {
        for name in ["../../evil", "/evil", "transformer/../../evil", "vae/evil\nx", "tokenizer/..\\evil"] {
            repository.extra_listing.push(name.to_owned());
        }
    });
    hub.fetch().expect("what is needed is there");
    assert_eq!(hub.downloads(), sorted(&NEEDED));
}

#[test]
fn an_etag_or_a_commit_cannot_lead_out_of_the_cache() {
    for hostile in ["../../../evil", "/evil", "a/b", ".."] {
        let hub = Hub::start();
        hub.server.edit(|repository| {
            repository.etags.insert("model_index.json".to_owned(), hostile.to_owned());
        });
        let error = hub.fetch_error();
        assert!(matches!(error, HubError::BadRepo { .. }), "{hostile}: {error}");
        hub.server.edit(|repository| {
            repository.etags.clear();
            repository.commit = hostile.to_owned();
        });
        let error = hub.fetch_error();
        assert!(matches!(error, HubError::BadRepo { .. }), "{hostile}: {error}");
        assert!(hub.tree().is_empty(), "{:?}", hub.tree());
    }
}

#[test]
fn broken_repositories_are_told_by_the_file() {
    let cases: [(&str, Option<&[u8]>, &str); 8] = [
        ("model_index.json", None, "model_index.json"),
        ("model_index.json", Some(b"[]"), "model_index.json"),
        (
            "model_index.json",
            Some(b"{\"_class_name\": \"StableDiffusionPipeline\"}"),
            "StableDiffusionPipeline",
        ),
        (
            "model_index.json",
            Some(b"{\"_class_name\": \"FluxPipeline\", \"vae\": [null, null]}"),
            "scheduler",
        ),
        (SHARD_INDEX, Some(b"{\"weight_map\": {}}"), SHARD_INDEX),
        (SHARD_INDEX, Some(b"{\"weight_map\": {\"a\": 7}}"), SHARD_INDEX),
        (SHARD, None, SHARD),
        ("tokenizer_2/tokenizer.json", None, "tokenizer_2/tokenizer.json"),
    ];
    for (file, content, expected) in cases {
        let hub = Hub::start();
        hub.server.edit(|repository| match content {
            Some(content) => drop(repository.files.insert(file.to_owned(), content.to_vec())),
            None => drop(repository.files.remove(file)),
        });
        let error = hub.fetch_error();
        assert!(matches!(error, HubError::BadRepo { .. }), "{file}: {error}");
        assert!(error.to_string().contains(expected), "{file}: {error}");
        assert_eq!(error.exit(), ExitCode::Config);
    }
}

#[test]
fn an_index_with_too_many_files_is_refused() {
    let hub = Hub::start();
    hub.server.edit(|repository| {
        let names: Vec<_> = (0..600).map(|i| format!("part-{i}.safetensors")).collect();
        let map: BTreeMap<_, _> = names.iter().enumerate().map(|(i, name)| (format!("t{i}"), name)).collect();
        let index = serde_json::json!({ "weight_map": map }).to_string().into_bytes();
        repository.files.insert(SHARD_INDEX.to_owned(), index);
        repository.extra_listing.extend(names.iter().map(|name| format!("transformer/{name}")));
    });
    let error = hub.fetch_error();
    assert!(matches!(error, HubError::BadRepo { .. }) && error.to_string().contains("512"), "{error}");
}
