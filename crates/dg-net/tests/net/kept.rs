//! What a state folder keeps: tokens that outlive their head, lists that many write, and what is wrong with files.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use dg_net::endpoint::{Endpoint, Listener, Options};
use dg_net::identity::{Admitted, Audit, Auditor, Ca, Name, RENEW_BEFORE, Role, State};
use dg_net::join::{JoinDesk, JoinError, JoinToken, Refusal, TOKEN_LIFE, TokenBook, join};

use crate::support::{loopback, name};

const DAY: Duration = Duration::from_secs(86_400);

fn state(folder: &Path) -> (State, Ca) {
    let state = State::create(folder.join("state")).unwrap();
    let now = SystemTime::now();
    let ca = state.init_ca(false, now).unwrap();
    state.issue(&ca, &Name::head(), Role::Head, false, now).unwrap();
    (state, ca)
}

/// A head over a folder, as one that is started again has it.
fn head(state: &State) -> (Endpoint, Listener, SocketAddr) {
    let admitted = state.admitted().unwrap();
    let book = TokenBook::open(state).unwrap();
    let desk = JoinDesk::with_tokens(state.ca().unwrap(), admitted.clone(), book);
    let identity = state.load(&Name::head()).unwrap();
    let made = Endpoint::listener(loopback(), &identity, admitted, Some(desk), Options::default());
    let (endpoint, listener) = made.unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, listener, address)
}

/// What another process does beside the head.
fn create(state: &State, address: SocketAddr, bound: Option<&str>, now: SystemTime) -> JoinToken {
    let (book, ca) = (TokenBook::open(state).unwrap(), state.ca().unwrap().fingerprint());
    let at = (address.ip().to_string(), address.port());
    book.create(ca, (&at.0, at.1), bound.map(name), TOKEN_LIFE, now).unwrap()
}

async fn refusal(token: &JoinToken, who: &str) -> Refusal {
    match join(token, &name(who), &Options::default()).await {
        Err(JoinError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn tokens_come_from_others_and_outlive_the_head() {
    let folder = tempfile::tempdir().unwrap();
    let (state, ca) = state(folder.path());
    let (endpoint, _listener, address) = head(&state);
    let now = SystemTime::now();
    let (first, second) = (create(&state, address, Some("node-1"), now), create(&state, address, None, now));
    let joined = join(&first, &name("node-1"), &Options::default()).await.unwrap();
    assert!(state.admitted().unwrap().contains(joined.passport().fingerprint()));
    assert_eq!(refusal(&first, "node-1").await, Refusal::Used);
    // A name that was given beside the running head is taken.
    state.issue(&ca, &name("node-2"), Role::Node, false, now).unwrap();
    assert_eq!(refusal(&second, "node-2").await, Refusal::Name);
    endpoint.close("restart").await;

    let (_endpoint, _listener, again) = head(&state);
    let moved = |token: &JoinToken| -> JoinToken {
        token
            .to_string()
            .replace(&format!(":{}:", address.port()), &format!(":{}:", again.port()))
            .parse()
            .unwrap()
    };
    assert_eq!(refusal(&moved(&first), "node-1").await, Refusal::Used);
    join(&moved(&second), &name("node-3"), &Options::default()).await.unwrap();

    let book = TokenBook::open(&state).unwrap();
    let third = create(&state, again, Some("node-4"), now);
    let id = book.list().unwrap().iter().find(|token| token.is_open(now)).unwrap().id();
    assert!(book.revoke(&id).unwrap() && !book.revoke(&id).unwrap());
    let fourth = create(&state, again, None, now);
    assert_eq!(refusal(&third, "node-4").await, Refusal::UnknownToken);
    assert_eq!(book.revoke_name(&name("node-4")).unwrap(), 0);
    // The file has no secret in it.
    let text = std::fs::read_to_string(state.folder().join("tokens")).unwrap();
    let secret = fourth.to_string().rsplit_once(':').unwrap().1.to_owned();
    assert!(!text.contains(&secret) && text.lines().count() == 3, "{text}");
    let mode = state.folder().join("tokens").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_broken_list_lets_nobody_in_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (state, _) = state(folder.path());
    let (_endpoint, _listener, address) = head(&state);
    let token = create(&state, address, None, SystemTime::now());
    let path = state.folder().join("tokens");
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, "nonsense\n").unwrap();
    let error = join(&token, &name("node-1"), &Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("any known protocol"), "{error}");
    assert!(TokenBook::open(&state).unwrap_err().to_string().contains("line 1 is not a token"));
    std::fs::write(&path, good).unwrap();
    join(&token, &name("node-1"), &Options::default()).await.unwrap();
}

#[test]
fn many_write_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (state, ca) = state(folder.path());
    let now = SystemTime::now();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (state, ca) = (&state, &ca);
            scope.spawn(move || {
                for number in 0..5 {
                    // Each has its own lists, as processes have.
                    let holder = name(&format!("n-{writer}-{number}"));
                    state.issue(ca, &holder, Role::Node, false, now).unwrap();
                    let book = TokenBook::open(state).unwrap();
                    book.create(ca.fingerprint(), ("h", 1), Some(holder), TOKEN_LIFE, now).unwrap();
                }
            });
        }
    });
    assert_eq!(state.admitted().unwrap().entries().len(), 21);
    assert_eq!(TokenBook::open(&state).unwrap().list().unwrap().len(), 20);
}

#[test]
fn renewed_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let (state, ca) = state(folder.path());
    let now = SystemTime::now();
    let (alice, node) = (name("alice"), name("node-1"));
    let old = state.issue(&ca, &alice, Role::Client, false, now - 80 * DAY).unwrap();
    assert!(old.passport().validity().1 < now + RENEW_BEFORE);
    let new = state.renew(&ca, &alice, now).unwrap();
    assert_eq!((new.passport().role(), new.passport().name()), (Role::Client, &alice));
    let admitted = state.admitted().unwrap();
    assert_eq!(admitted.of(&alice).len(), 2);
    assert_eq!((admitted.revoke_name(&alice).unwrap(), admitted.of(&alice).len()), (2, 0));
    assert!(state.renew(&ca, &node, now).unwrap_err().to_string().contains("node-1.pem"));
    std::fs::remove_file(state.identity_path(&Name::head())).unwrap();
    assert_eq!(state.renew(&ca, &Name::head(), now).unwrap().passport().role(), Role::Head);
    let away = folder.path().join("bob.pem");
    state.issue_to(&away, (&ca, &name("bob"), Role::Client), false, now).unwrap();
    assert!(state.issue_to(&away, (&ca, &name("bob"), Role::Client), false, now).is_err());
    let audit = Auditor::open(&state).unwrap().identity(&away, now);
    assert!(audit.is_good() && audit.admitted == Some(true), "{audit:?}");
    // A new CA begins anew.
    state.init_ca(true, now).unwrap();
    assert!(state.admitted().unwrap().entries().is_empty());
}

/// What is said about the file `called` of a folder after `edit`.
fn check(called: &str, edit: impl FnOnce(&State, &Ca), expect: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (state, ca) = state(folder.path());
    let now = SystemTime::now();
    state.issue(&ca, &name("node-1"), Role::Node, false, now).unwrap();
    edit(&state, &ca);
    let audits = Auditor::open(&state).unwrap().all(now).unwrap();
    let is_called = |audit: &&Audit| audit.path.file_name().unwrap() == called;
    let faults = &audits.iter().find(is_called).unwrap().faults;
    assert_eq!(faults.len(), expect.len(), "{faults:?}");
    for (fault, expect) in faults.iter().zip(expect) {
        assert!(fault.what.contains(expect), "{fault:?}");
    }
    assert!(audits.iter().all(|audit| is_called(&audit) || audit.is_good()), "{audits:?}");
}

#[test]
fn every_fault_is_found() {
    let now = SystemTime::now();
    let issue = |begun: SystemTime| {
        move |state: &State, ca: &Ca| {
            state.issue(ca, &name("node-1"), Role::Node, true, begun).map(drop).unwrap();
        }
    };
    check("node-1.pem", |_, _| {}, &[]);
    check("ca.key", |_, _| {}, &[]);
    check("node-1.pem", issue(now - 93 * DAY), &["it ended 3 days ago"]);
    check("node-1.pem", issue(now + DAY), &["begins to be valid in 23 h"]);
    let foreign = |state: &State, _: &Ca| {
        let other = Ca::create(now).unwrap();
        state.issue(&other, &name("node-1"), Role::Node, true, now).unwrap();
    };
    check("node-1.pem", foreign, &["another CA signed it"]);
    let readable = |state: &State, _: &Ca| {
        let path = state.identity_path(&name("node-1"));
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o640)).unwrap();
    };
    check("node-1.pem", readable, &["others may use it (mode 640)"]);
    let renamed = |state: &State, _: &Ca| {
        let path = |text| state.identity_path(&name(text));
        std::fs::rename(path("node-1"), path("node-2")).unwrap();
    };
    check("node-2.pem", renamed, &["it is the certificate of `node-1`"]);
    let revoked = |state: &State, _: &Ca| {
        state.admitted().unwrap().revoke_name(&name("node-1")).unwrap();
    };
    check("node-1.pem", revoked, &["it is not admitted"]);
    let cut = |state: &State, _: &Ca| {
        let path = state.identity_path(&name("node-1"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, &text[..text.len() / 2]).unwrap();
    };
    check("node-1.pem", cut, &["reading certificate and key failed"]);
    // A certificate that says it is of this CA, and is not: its signature is another's.
    let forged = |state: &State, ca: &Ca| {
        let other = Ca::create(now).unwrap();
        state.issue(&other, &name("node-1"), Role::Node, true, now).unwrap();
        let path = state.identity_path(&name("node-1"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace(other.certificate_pem(), ca.certificate_pem())).unwrap();
    };
    check("node-1.pem", forged, &["of `node-1` is not good"]);
    let swapped = |state: &State, _: &Ca| {
        let other = State::create(state.folder().with_file_name("other")).unwrap();
        other.init_ca(false, now).unwrap();
        std::fs::copy(other.folder().join("ca.key"), state.folder().join("ca.key")).unwrap();
    };
    check("ca.key", swapped, &["not the CA whose certificate is in `ca.crt`"]);
}

#[test]
fn a_node_has_no_list_and_no_ca() {
    let folder = tempfile::tempdir().unwrap();
    let (head, ca) = state(folder.path());
    let now = SystemTime::now();
    let node = State::create(folder.path().join("node")).unwrap();
    node.save(&head.issue(&ca, &name("node-1"), Role::Node, false, now).unwrap(), false).unwrap();
    let audits = Auditor::open(&node).unwrap().all(now).unwrap();
    assert!(audits.len() == 1 && audits[0].is_good() && audits[0].admitted.is_none(), "{audits:?}");
    assert!(Admitted::everyone().entries().is_empty());
}
