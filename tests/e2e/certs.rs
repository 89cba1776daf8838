//! Certificates, join tokens and the state of a machine, by `dg-cluster`.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use crate::place::{Place, expect_exit};
use dg_net::endpoint::{Endpoint, Listener, Options};
use dg_net::identity::{Admitted, Ca, Identity, Name, Role, State};
use dg_net::join::{JoinDesk, JoinError, JoinToken, Refusal, TokenBook, join};
use serde_json::Value;

const FILE: &str = "\
[cluster]
name = \"rig\"
listen = \"127.0.0.1:7443\"
state_dir = \"state\"
[[node]]
name = \"left\"
local = true
[[node]]
name = \"right\"
local = true
";

const DAY: Duration = Duration::from_secs(86_400);

/// A folder with a cluster's file.
fn rig() -> Place {
    let place = Place::new();
    place.write("rig.toml", FILE);
    place
}

/// One whose certificates were made.
fn made() -> Place {
    let place = rig();
    ok(&place, &["certs", "init"]);
    place
}

fn args<'a>(command: &[&'a str]) -> Vec<&'a str> {
    [command, &["--cluster", "rig.toml"]].concat()
}

/// What a command prints that succeeds.
fn ok(place: &Place, command: &[&str]) -> String {
    place.cluster(&args(command), &[]).expect_success().stdout
}

fn fails(place: &Place, command: &[&str], status: i32, said: &[&str]) -> String {
    let output = place.cluster(&args(command), &[]);
    expect_exit(&output, status, said);
    output.stdout
}

fn json(place: &Place, command: &[&str]) -> Value {
    serde_json::from_str(&ok(place, &[command, &["-o", "json"]].concat())).expect("one JSON object")
}

/// The rows of `certs show` about a name.
fn rows(place: &Place, name: &str) -> Vec<Value> {
    let shown = json(place, &["certs", "show"]);
    assert_eq!(shown["schema"], 1);
    let rows = shown["certificates"].as_array().expect("a list").iter();
    rows.filter(|row| row["name"] == name).cloned().collect()
}

fn state(place: &Place) -> State {
    State::open(place.path("state")).expect("init has made it")
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("a good name")
}

#[test]
fn from_init_to_revoke() {
    let place = rig();
    fails(&place, &["certs", "show"], 3, &["state", "hint: `dg-cluster certs init` makes it"]);
    let said = ok(&place, &["certs", "init"]);
    assert!(["CA", "head", "left", "right"].iter().all(|part| said.contains(part)), "{said}");
    fails(&place, &["certs", "init"], 3, &["ca.key`: it exists", "hint: replace it (`--force`)"]);
    ok(&place, &["certs", "issue", "--client", "alice"]);
    fails(&place, &["certs", "issue", "--node", "alice"], 3, &["alice.pem`: it exists"]);
    ok(&place, &["certs", "issue", "--client", "bob", "--out", "bob.pem"]);
    assert_eq!(place.path("bob.pem").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.path("state").metadata().unwrap().permissions().mode() & 0o777, 0o700);

    let shown = ok(&place, &["certs", "show"]);
    assert_eq!(shown.lines().count(), 7, "heading, CA, head, two nodes, two clients:\n{shown}");
    let [alice] = &rows(&place, "alice")[..] else { panic!("{shown}") };
    assert_eq!(
        (&alice["role"], &alice["admitted"], &alice["days_left"]),
        (&"client".into(), &true.into(), &89.into())
    );
    assert_eq!((&alice["renew"], alice["faults"].as_array().map(Vec::len)), (&false.into(), Some(0)));
    assert_eq!(
        (&rows(&place, "bob")[0]["file"], &rows(&place, "bob")[0]["role"]),
        (&Value::Null, &Value::Null)
    );
    let verified = ok(&place, &["certs", "verify"]);
    assert!(
        verified.lines().count() == 5 && verified.lines().all(|line| line.starts_with("ok ")),
        "{verified}"
    );
    let verified = ok(&place, &["certs", "verify", "bob.pem"]);
    assert!(verified.starts_with("ok   bob.pem: client bob, 89 days left"), "{verified}");

    ok(&place, &["certs", "renew", "alice"]);
    let both = rows(&place, "alice");
    assert!(both.len() == 2 && both.iter().all(|row| row["admitted"] == true), "{both:?}");
    assert!(both.iter().any(|row| row["fingerprint"] == alice["fingerprint"]), "the old one is let in");
    fails(&place, &["certs", "renew", "bob"], 3, &["it is where its holder is", "token create --node"]);
    fails(&place, &["certs", "renew", "zed"], 3, &["zed.pem", "certs issue"]);
    let said = ok(&place, &["certs", "renew", "--all"]);
    assert!(said.contains("head") && said.contains("alice") && !said.contains("bob"), "{said}");

    assert_eq!(ok(&place, &["certs", "revoke", "alice"]), "revoked 3 certificates of alice\n");
    fails(&place, &["certs", "revoke", "alice"], 3, &["no certificate that the head lets in"]);
    let lines = fails(&place, &["certs", "verify"], 3, &["not good: 1 of 5 certificates"]);
    assert!(lines.contains("bad  ./state/alice.pem: it is not admitted"), "{lines}");
    fails(&place, &["certs", "verify", "bob.pem", "no.pem"], 3, &["not good: 1 of 2"]);
}

#[test]
fn an_authority_can_be_replaced() {
    let place = made();
    ok(&place, &["certs", "issue", "--client", "alice"]);
    ok(&place, &["token", "create"]);
    let before = state(&place).ca().unwrap().fingerprint();
    let output = place.cluster(&args(&["certs", "init", "--force"]), &[]).expect_success();
    assert!(output.stderr.contains("alice.pem is of the old authority"), "{}", output.stderr);
    assert_ne!(state(&place).ca().unwrap().fingerprint(), before);
    let shown = ok(&place, &["certs", "show"]);
    assert!(shown.contains("! another CA signed it"), "{shown}");
    assert_eq!(json(&place, &["token", "list"])["tokens"], serde_json::json!([]));
    fails(&place, &["certs", "verify"], 3, &["not good: 1 of 5"]);
    ok(&place, &["certs", "renew", "alice"]);
    ok(&place, &["certs", "verify"]);
}

/// What is said of a certificate that `edit` has made worse, and that the program ends with 3.
fn broken(edit: impl FnOnce(&State, &Ca), said: &str) {
    let place = made();
    let state = state(&place);
    edit(&state, &state.ca().unwrap());
    let lines = fails(&place, &["certs", "verify"], 3, &["not good: 1 of 4 certificates"]);
    let bad: Vec<&str> = lines.lines().filter(|line| line.starts_with("bad ")).collect();
    assert!(bad.len() == 1 && bad[0].contains(said) && bad[0].contains("hint: "), "no `{said}` in\n{lines}");
}

#[test]
fn bad_certificates_are_found() {
    let now = SystemTime::now();
    let path = |state: &State| state.identity_path(&name("left"));
    broken(|s, _| std::fs::set_permissions(path(s), PermissionsExt::from_mode(0o644)).unwrap(), "mode 644");
    let ended =
        |s: &State, ca: &Ca| drop(s.issue(ca, &name("left"), Role::Node, true, now - 91 * DAY).unwrap());
    broken(ended, "left.pem: it ended 24 h ago");
    let early =
        |s: &State, ca: &Ca| drop(s.issue(ca, &name("left"), Role::Node, true, now + 3 * DAY).unwrap());
    broken(early, "begins to be valid in 2 days");
    let foreign = |s: &State, _: &Ca| {
        let other = Ca::create(now).unwrap();
        s.issue(&other, &name("left"), Role::Node, true, now).unwrap();
    };
    broken(foreign, "another CA signed it");
    broken(|s, _| std::fs::rename(path(s), s.folder().join("middle.pem")).unwrap(), "certificate of `left`");
    broken(
        |s, _| std::fs::write(s.folder().join("left.pem"), "").unwrap(),
        "reading certificate and key failed",
    );
    let revoked =
        |s: &State, _: &Ca| assert_eq!(s.admitted().unwrap().revoke_name(&name("left")).unwrap(), 1);
    broken(revoked, "it is not admitted");

    let place = made();
    let soon = state(&place);
    soon.issue(&soon.ca().unwrap(), &name("left"), Role::Node, true, now - 70 * DAY).unwrap();
    assert!(ok(&place, &["certs", "verify"]).contains("19 days left (renew it"));
    let shown = ok(&place, &["certs", "show"]);
    assert!(shown.contains("! ends soon") && shown.contains("1 certificate ends within 30 days"), "{shown}");
    std::fs::set_permissions(place.path("state"), PermissionsExt::from_mode(0o755)).unwrap();
    fails(&place, &["certs", "verify"], 3, &["others may use it (mode 755)", "hint: chmod 700"]);
}

/// A head over the place's folder, as one that is started has it.
fn head(state: &State) -> (Endpoint, Listener) {
    let admitted = state.admitted().unwrap();
    let book = TokenBook::open(state).unwrap();
    let desk = JoinDesk::with_tokens(state.ca().unwrap(), admitted.clone(), book);
    let identity = state.load(&Name::head()).unwrap();
    let at = ([127, 0, 0, 1], 0).into();
    Endpoint::listener(at, &identity, admitted, Some(desk), Options::beside_cpu_ranks()).unwrap()
}

async fn try_join(token: &str, who: &str) -> Result<Identity, JoinError> {
    let token: JoinToken = token.trim().parse().expect("a token was printed");
    join(&token, &name(who), &Options::beside_cpu_ranks()).await
}

fn is_refused(joined: Result<Identity, JoinError>, expect: Refusal) {
    assert!(matches!(&joined, Err(JoinError::Refused(refusal)) if *refusal == expect), "{joined:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_by_a_token_that_was_made_beside_the_head() {
    let place = made();
    let state = state(&place);
    let (endpoint, mut listener) = head(&state);
    let address = endpoint.local_addr().unwrap().to_string();
    let create = |more: &[&str]| {
        ok(&place, &[&["token", "create", "--address", &address, "--ttl", "30min"], more].concat())
    };
    let (bound, any) = (create(&["--node", "right"]), create(&[]));
    assert!(bound.starts_with(&format!("dgjoin1:{address}:")), "{bound}");
    is_refused(try_join(&bound, "left").await, Refusal::Name);
    let joined = try_join(&bound, "right").await.expect("the token is for it");
    is_refused(try_join(&bound, "right").await, Refusal::Used);
    // What it got is a peer's.
    let dialer =
        Endpoint::dialer(([127, 0, 0, 1], 0).into(), &joined, Admitted::everyone(), Options::default());
    let peer = dialer.unwrap().connect(endpoint.local_addr().unwrap(), &Name::head()).await;
    assert!(peer.is_ok() && listener.accept().await.is_some_and(|peer| peer.name().as_str() == "right"));

    // The head is started again: used stays used, open stays open.
    endpoint.close("restart").await;
    let (endpoint, _listener) = head(&state);
    let port = |address: &str| format!(":{}:", address.rsplit_once(':').expect("a port").1);
    let again = port(&endpoint.local_addr().unwrap().to_string());
    let moved = |token: &str| token.replace(&port(&address), &again);
    is_refused(try_join(&moved(&bound), "right").await, Refusal::Used);
    try_join(&moved(&any), "new").await.expect("the token was not used");

    let listed = json(&place, &["token", "list"]);
    let states: Vec<&str> =
        listed["tokens"].as_array().expect("a list").iter().filter_map(|t| t["state"].as_str()).collect();
    assert_eq!((&listed["schema"], states), (&1.into(), vec!["used", "used"]));
    let last = create(&["--node", "other"]);
    let listed = json(&place, &["token", "list"]);
    let open = listed["tokens"].as_array().unwrap().iter().find(|token| token["state"] == "open").unwrap();
    let id = open["id"].as_str().expect("an id");
    assert_eq!(ok(&place, &["token", "revoke", id]), format!("revoked token {id}\n"));
    fails(&place, &["token", "revoke", id], 3, &["there is no token", "token list"]);
    create(&[]);
    is_refused(try_join(&moved(&last), "other").await, Refusal::UnknownToken);
    // Joined certificates are listed and can be revoked, though their keys are elsewhere.
    assert_eq!(rows(&place, "new").len(), 1);
    assert_eq!(ok(&place, &["certs", "revoke", "new"]), "revoked 1 certificate of new\n");
    let secret = any.trim().rsplit_once(':').expect("a secret").1;
    assert!(!String::from_utf8_lossy(&place.read("state/tokens")).contains(secret));
}

#[test]
fn tokens_need_an_address_that_leads_somewhere() {
    let place = made();
    let create = |more: &[&str], status: i32, said: &[&str]| {
        let output = place.cluster(&[&["token", "create"], more].concat(), &[]);
        expect_exit(&output, status, said);
        output.stderr
    };
    let at = ["--state_dir", "state"];
    create(&at, 2, &["needs the address of the head", "hint: add `--address"]);
    create(
        &[&at[..], &["--address", "0.0.0.0:7443"]].concat(),
        2,
        &["nobody can be sent to", "10.0.0.1:7443"],
    );
    create(&[&at[..], &["--address", "[::]:7443"]].concat(), 2, &["nobody can be sent to"]);
    create(
        &[&at[..], &["--address", "10.0.0.1"]].concat(),
        2,
        &["has no port", "hint: write `10.0.0.1:7443`"],
    );
    create(&[&at[..], &["--address", "10.0.0.1:7443", "--ttl", "3"]].concat(), 2, &["1min to 30d"]);
    create(
        &[&at[..], &["--address", "10.0.0.1:7443", "--node", "head"]].concat(),
        2,
        &["reserved", "hint: "],
    );
    assert_eq!(create(&[&at[..], &["--address", "[fd00::1]:7443"]].concat(), 0, &[]), "");
    let said = create(&["--cluster", "rig.toml", "--node", "far"], 0, &["rig.toml has no node `far`"]);
    assert!(said.contains("only processes of this host"), "{said}");
    place.write("rig.toml", FILE.replace("127.0.0.1", "0.0.0.0"));
    create(&["--cluster", "rig.toml"], 3, &["nobody can be sent to `0.0.0.0:7443`", "hint: "]);
    create(&[], 5, &["no cluster is up on this host", "hint: "]);
}

#[test]
fn the_usual_state_folder_has_the_name_of_the_cluster() {
    let place = Place::new();
    place.write("rig.toml", "[cluster]\nname = \"mine\"\n");
    let home = place.path("home");
    let env = [("XDG_STATE_HOME", home.to_str().expect("a plain name"))];
    place.cluster(&args(&["certs", "init"]), &env).expect_success();
    assert!(
        home.join("dg-cluster/mine/head.pem").is_file() && home.join("dg-cluster/mine/local.pem").is_file()
    );
}

/// The check of a name, after everything else about the object was compared with docs/cluster.md.
fn doctor(place: &Place, status: i32, which: &str) -> Value {
    let output = place.cluster(&args(&["doctor", "-o", "json"]), &[]);
    expect_exit(&output, status, &[]);
    let object: Value = serde_json::from_str(&output.stdout).expect("one JSON object");
    assert_eq!((&object["schema"], &object["ok"]), (&1.into(), &(status == 0).into()), "{object}");
    let checks = object["checks"].as_array().expect("a list");
    for check in checks {
        assert!(check["name"].is_string() && check["detail"].is_string(), "{check}");
        let status = check["status"].as_str().expect("a word");
        assert!(["ok", "warn", "fail"].contains(&status), "{check}");
        assert_eq!(check["hint"].is_string(), status != "ok", "{check}");
    }
    let names: Vec<&str> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
    for name in ["cpu", "cores", "memory", "open files", "udp receive", "udp send", "clock", "listen"] {
        assert!(names.contains(&name), "no `{name}` in {names:?}");
    }
    checks.iter().find(|check| check["name"] == which).cloned().unwrap_or_default()
}

#[test]
fn a_doctor_looks_at_the_machine_and_the_cluster() {
    let place = rig();
    let bare = place.cluster(&["doctor"], &[]).expect_success().stdout;
    assert!(bare.contains("kernels: ") && bare.contains("open files") && !bare.contains("listen"), "{bare}");
    // A port that is free now, so that other programs of this machine do not disturb.
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it has one").port();
    let file = FILE.replace("7443", &port.to_string());
    place.write("rig.toml", &file);
    assert_eq!(doctor(&place, 4, "listen")["status"], "fail");
    drop(taken);
    assert_eq!(doctor(&place, 0, "listen")["status"], "ok");
    assert_eq!(doctor(&place, 0, "state folder")["status"], "warn");
    ok(&place, &["certs", "init"]);
    assert_eq!(doctor(&place, 0, "certificates")["detail"], "4 certificates, all good");
    assert_eq!(doctor(&place, 0, "model")["detail"], "demo: built in");
    std::fs::set_permissions(place.path("state/head.pem"), PermissionsExt::from_mode(0o604)).unwrap();
    assert_eq!(doctor(&place, 4, "certificates")["hint"], "chmod 600");
    std::fs::set_permissions(place.path("state"), PermissionsExt::from_mode(0o711)).unwrap();
    assert_eq!(doctor(&place, 4, "state folder")["status"], "fail");
    std::fs::set_permissions(place.path("state"), PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::set_permissions(place.path("state/head.pem"), PermissionsExt::from_mode(0o600)).unwrap();
    place.write("rig.toml", format!("{file}[model]\nname = \"./nowhere\"\n"));
    assert_eq!(doctor(&place, 4, "model")["status"], "fail");
    place.write("rig.toml", "[cluster]\nlisen = \"x\"\n");
    expect_exit(&place.cluster(&args(&["doctor"]), &[]), 3, &["did you mean `listen`?"]);
    let far = "[[node]]\nname = \"far\"\naddress = \"10.0.0.9\"\nssh = \"me@far\"\n";
    place.write("rig.toml", format!("{}{far}", FILE.replace("127.0.0.1", "192.0.2.1")));
    let output = place.cluster(&args(&["doctor"]), &[("PATH", "/nowhere")]);
    expect_exit(&output, 4, &["1 thing must be put right", "hint: "]);
    assert!(
        output.stdout.contains("FAIL   ssh") && output.stdout.contains("warn   listen"),
        "{}",
        output.stdout
    );
}

/// GPUs of this host must be there; what tells NCCL is looked at for every node, on this host with what ranks inherit.
#[test]
fn a_doctor_looks_at_gpus_and_at_what_tells_nccl() {
    let place = rig();
    let gpus = "[[node]]\nname = \"gpus\"\nlocal = true\ngpus = [255]\n\
                [node.env]\nNCCL_SOCKET_IFNAME = \"=nowhere0\"\nNCCL_DEBUG = \"WARN\"\n";
    place.write("rig.toml", gpus);
    let env = [("NCCL_COMM_BLOCKING", "1"), ("NCCL_SHM_DISABLE", "1"), ("NCCL_NO_SUCH_WORD", "x")];
    let output = place.cluster(&args(&["doctor", "-o", "json"]), &env);
    expect_exit(&output, 4, &["must be put right", "hint: "]);
    let object: Value = serde_json::from_str(&output.stdout).expect("one JSON object");
    let said = |name: &str, status: &str, words: &str| {
        let checks = object["checks"].as_array().expect("a list");
        let is = |check: &&Value| check["name"] == name && check["status"] == status;
        let found = checks.iter().filter(is).any(|c| c["detail"].as_str().is_some_and(|d| d.contains(words)));
        assert!(found, "no {status} of `{name}` with `{words}` in {object:#}");
    };
    said("gpus", "fail", "");
    said("nccl env", "ok", "node `gpus`: NCCL_DEBUG=WARN, NCCL_SHM_DISABLE=1 (environment)");
    said("nccl env", "fail", "NCCL_SOCKET_IFNAME==nowhere0: this host has no such interface: ");
    said("nccl env", "fail", "NCCL_COMM_BLOCKING=1 (environment): calls of NCCL would block");
    said("nccl env", "warn", "NCCL_NO_SUCH_WORD=x (environment): not a variable that is known");
    said("cuda build", "fail", "built without CUDA");
    let far = "[cluster]\nlisten = \"10.0.0.1:7443\"\n\
               [[node]]\nname = \"far\"\naddress = \"10.0.0.2\"\ngpus = [0]\n\
               [node.env]\nNCCL_SOCKET_IFNAME = \"nowhere0\"\n";
    place.write("rig.toml", far);
    let output = place.cluster(&args(&["doctor"]), &env).expect_success().stdout;
    assert!(output.contains("ok     nccl env      node `far`: NCCL_SOCKET_IFNAME=nowhere0"), "{output}");
    assert!(!output.contains("NCCL_COMM_BLOCKING") && !output.contains("cuda build"), "{output}");
    place.write("rig.toml", FILE);
    assert!(!place.cluster(&args(&["doctor"]), &env).stdout.contains("nccl"), "nobody has GPUs");
    let own = place.run_with(&["doctor"], &env).expect_success().stdout;
    assert!(
        own.contains("NCCL_SHM_DISABLE=1") && own.contains("NCCL_NO_SUCH_WORD=x: not a variable"),
        "{own}"
    );
}
