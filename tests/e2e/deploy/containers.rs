//! The image, and Docker Compose.

use super::{at, check_cluster_file, list, read, text, words, yaml};
use dg_testkit::workspace_dir;
use serde_json::{Value, json};

/// The instructions of the Dockerfile.
fn instructions() -> Vec<(String, String)> {
    let joined = read("Dockerfile").replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = |line: &str| {
        let (name, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
        let rest: Vec<_> = rest.split_whitespace().collect();
        (name.to_owned(), rest.join(" "))
    };
    lines.map(split).collect()
}

#[test]
fn the_image_is_small_pinned_and_not_of_root() {
    let all = instructions();
    let of = |name: &str| -> Vec<&str> {
        all.iter().filter(|(n, _)| n == name).map(|(_, rest)| rest.as_str()).collect()
    };
    let known = ["ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "STOPSIGNAL", "USER", "WORKDIR"];
    assert!(all.iter().all(|(name, _)| known.contains(&name.as_str())), "{all:?}");
    assert_eq!(of("FROM"), ["${RUST_IMAGE} AS build", "${RUNTIME_IMAGE} AS runtime"]);
    let cargo = std::fs::read_to_string(workspace_dir().join("Cargo.toml")).expect("the workspace's file");
    let rust = cargo.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("a version");
    let rust = rust.trim_matches('"');
    let [builder, runtime] = of("ARG")[..] else { panic!("{:?}", of("ARG")) };
    assert!(builder.starts_with(&format!("RUST_IMAGE=rust:{rust}-")), "{builder}");
    let tag = runtime.strip_prefix("RUNTIME_IMAGE=debian:").expect("debian");
    assert!(tag.starts_with(|c: char| c.is_ascii_digit()) && tag.ends_with("-slim"), "{tag}");
    assert!(of("RUN").iter().any(|run| run.contains("cargo build --release --locked --workspace --bins")));
    // the programs of the workspace, and nothing else of the build
    let copies: Vec<&str> = of("COPY").into_iter().filter(|copy| copy.contains("--from=")).collect();
    assert_eq!(copies, ["--from=build /programs/dg-cluster /programs/diffgentor /usr/local/bin/"]);
    for program in ["dg-cluster", "diffgentor"] {
        assert!(workspace_dir().join(format!("crates/{program}/src/main.rs")).is_file(), "{program}");
    }
    let last = |name: &str| all.iter().rposition(|(n, _)| n == name).expect("it is there");
    let id = of("USER")[0].split(':').next().and_then(|id| id.parse::<u32>().ok()).expect("a number");
    assert!(id > 0 && last("USER") > last("RUN") && last("USER") > last("COPY"), "{all:?}");
    assert!(read("Dockerfile.dockerignore").lines().any(|line| line == "target"));
}

#[test]
fn containers_of_compose_are_fenced_in_and_start_in_order() {
    let documents = yaml("compose.yaml");
    let [compose] = &documents[..] else { panic!("one document") };
    let services = at(compose, "/services").as_object().expect("services");
    let names: Vec<&str> = services.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    for (name, service) in services {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
        assert!(text(service, "/image").rsplit_once(':').is_some_and(|(_, tag)| tag != "latest"));
        assert!(service.get("user").is_none() && service.get("privileged").is_none(), "{name}");
        assert!(service.get("ports").is_none(), "{name}: nothing is published");
        for volume in list(service, "/volumes") {
            let volume = volume.as_str().and_then(|v| v.split(':').next()).expect("volumes in short form");
            let is_there = volume.starts_with("./") || compose["volumes"].get(volume).is_some();
            assert!(is_there, "{name}: volume {volume}");
        }
    }
    let test = words(at(&services["head"], "/healthcheck/test"));
    assert_eq!(test[..3], ["CMD", "dg-cluster", "status"]);
    assert_eq!(text(&services["invite"], "/depends_on/head/condition"), "service_healthy");
    let plan = check_cluster_file(text(compose, "/configs/cluster/content"));
    for node in list(&plan, "/nodes") {
        let name = text(node, "/name");
        let service: &Value = services.get(name).unwrap_or_else(|| panic!("no service {name}"));
        assert_eq!((text(service, "/hostname"), text(service, "/environment/NODE")), (name, name));
        let condition = text(service, "/depends_on/invite/condition");
        assert_eq!(condition, "service_completed_successfully");
        assert!(words(&services["invite"]["command"])[2].contains(name));
    }
}
