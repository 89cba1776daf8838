//! A model from a hub on this machine.

use super::place::{Place, SMALL, expect_exit};
use dg_testkit::HubServer;
use dg_testkit::hub::Repository;
use std::collections::BTreeMap;
use std::path::Path;

/// The files of a folder by path within it.
fn files(root: &Path, below: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(root.join(below)).expect("a readable folder") {
        let entry = entry.expect("a readable folder");
        let path = below.join(entry.file_name());
        if entry.path().is_dir() {
            files(root, &path, found);
        } else {
            let name = path.to_str().expect("a plain name").to_string();
            found.insert(name, std::fs::read(entry.path()).expect("a readable file"));
        }
    }
}

#[test]
fn a_hub_model_is_fetched_once_and_draws_as_its_folder_does() {
    let place = Place::new();
    let model = dg_testkit::model_dir("tiny-dev");
    let mut repository =
        Repository { id: "someone/tiny".into(), commit: "0123456789".repeat(4), ..Repository::default() };
    files(&model, Path::new(""), &mut repository.files);
    repository.files.insert("README.md".into(), b"not needed".to_vec());
    let server = HubServer::start(repository);
    let endpoint = server.endpoint();
    let env = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", "hf")];
    let run =
        |args: &[&str]| place.run_with(&[SMALL, &["--prompt", "x", "--seed", "1"], args].concat(), &env);

    expect_exit(
        &run(&["--model_name", "someone/tiny", "--local_files_only"]),
        3,
        &["--local_files_only", "hint: "],
    );
    expect_exit(
        &run(&["--model_name", "someone/tiny", "--dry_run"]),
        3,
        &["someone/tiny", "a dry run downloads"],
    );
    expect_exit(&run(&["--model_name", "someone/tiny", "--output_dir", "a"]), 0, &[]);
    assert!(server.take_requests().iter().all(|r| !r.path.contains("README")), "only what is needed");
    expect_exit(&run(&["--model_name", "someone/tiny", "--output_dir", "b", "--local_files_only"]), 0, &[]);
    assert_eq!(server.take_requests(), []);
    let listed = place.run_with(&["models"], &env).expect_success();
    assert!(listed.stdout.contains("someone/tiny"), "{}", listed.stdout);
    assert_eq!(place.tree("a"), place.tree("b"));

    let folder = model.to_str().expect("a plain name");
    expect_exit(&run(&["--model_name", folder, "--output_dir", "c"]), 0, &[]);
    let pixels = |name: &str| dg_testkit::read_png_rgb(&place.path(name));
    assert!(pixels("a/000000.png") == pixels("c/000000.png"));

    server.edit(|repository| repository.deny_all = Some(401));
    let gated = run(&["--model_name", "someone/other", "--output_dir", "d"]);
    expect_exit(&gated, 3, &["401", "HF_TOKEN"]);
}
