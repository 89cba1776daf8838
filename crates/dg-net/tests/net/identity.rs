//! Names, and the folder that keeps keys.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use dg_net::identity::{Admitted, Fingerprint, Name, Role, State};

use crate::support::name;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn state() -> (tempfile::TempDir, State) {
    let folder = tempfile::tempdir().unwrap();
    let state = State::create(folder.path().join("state")).unwrap();
    (folder, state)
}

#[test]
fn names_are_checked() {
    let longest = "a".repeat(63);
    for good in ["a", "node-1", "1", "gpu-04-rack-2", &longest] {
        assert_eq!(Name::parse(good).unwrap().domain(), format!("{good}.dg-cluster"));
    }
    let long = "a".repeat(64);
    for bad in ["", "head", "Node", "a.b", "a_b", "-a", "a-", "../a", "a\0", "\u{e9}", &long] {
        let error = Name::parse(bad).unwrap_err().to_string();
        assert!(error.contains("hint: "), "{error}");
    }
}

#[test]
fn files_are_their_owners_alone() {
    let (_folder, state) = state();
    let now = SystemTime::now();
    let ca = state.init_ca(false, now).unwrap();
    let node = state.issue(&ca, &name("node-1"), Role::Node, false, now).unwrap();
    assert_eq!(mode(state.folder()), 0o700);
    let mut files = 0;
    for entry in fs::read_dir(state.folder()).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
        files += 1;
    }
    assert_eq!(files, 5, "CA with key, CA, node, those admitted and their lock, and no temporary file");
    let again = state.load(&name("node-1")).unwrap();
    assert_eq!(again.passport(), node.passport());
    again.check(now).unwrap();
    assert_eq!(state.ca().unwrap().fingerprint(), ca.fingerprint());
    // What the CA signs after it was loaded is as good.
    state.ca().unwrap().issue(&name("node-2"), Role::Node, now).unwrap().check(now).unwrap();
    assert!(!format!("{again:?}{ca:?}").contains("PRIVATE"));

    set_mode(&state.identity_path(&name("node-1")), 0o640);
    let error = state.load(&name("node-1")).unwrap_err().to_string();
    assert!(error.contains("others may use it (mode 640); hint: chmod 600"), "{error}");
    set_mode(state.folder(), 0o755);
    assert!(State::open(state.folder()).unwrap_err().to_string().contains("hint: chmod 700"));
    assert!(State::open("does/not/exist").unwrap_err().to_string().contains("certs init"));
    // Only root can give a folder away, and only root could use such a one.
    set_mode(state.folder(), 0o700);
    match std::os::unix::fs::chown(state.folder(), Some(1), None) {
        Ok(()) => {
            let error = State::open(state.folder()).unwrap_err().to_string();
            assert!(error.contains("it belongs to another user (1); hint: run as"), "{error}");
        }
        Err(_) => println!("SKIPPED: only root can give folders away"),
    }
}

#[test]
fn nothing_is_overwritten_unasked() {
    let (_folder, state) = state();
    let now = SystemTime::now();
    let ca = state.init_ca(false, now).unwrap();
    assert!(state.init_ca(false, now).unwrap_err().to_string().contains("it exists"));
    assert_eq!(state.ca().unwrap().fingerprint(), ca.fingerprint());
    let first = state.issue(&ca, &name("node-1"), Role::Node, false, now).unwrap();
    assert!(state.issue(&ca, &name("node-1"), Role::Client, false, now).is_err());
    assert_eq!(state.load(&name("node-1")).unwrap().passport(), first.passport());
    let second = state.issue(&ca, &name("node-1"), Role::Node, true, now).unwrap();
    assert_eq!(state.load(&name("node-1")).unwrap().passport(), second.passport());
    // Both count until the older one is revoked.
    let admitted = state.admitted().unwrap();
    assert_eq!(admitted.of(&name("node-1")).len(), 2);
    let other = state.init_ca(true, now).unwrap();
    assert_ne!(other.fingerprint(), ca.fingerprint());
}

#[test]
fn roles_are_in_the_certificate() {
    let (_folder, state) = state();
    let now = SystemTime::now();
    let ca = state.init_ca(false, now).unwrap();
    for (holder, role) in [("head", Role::Head), ("node-1", Role::Node), ("laptop", Role::Client)] {
        let issued = state.issue(&ca, &name(holder), role, false, now).unwrap();
        let loaded = state.load(&name(holder)).unwrap();
        assert_eq!((loaded.passport().role(), loaded.passport()), (role, issued.passport()));
        let (begin, end) = loaded.passport().validity();
        let days = end.duration_since(now).unwrap().as_secs() / 86_400;
        assert!(begin < now && (89..=90).contains(&days), "{days} days");
    }
    assert!(ca.issue(&name("node-1"), Role::Head, now).is_err());
    assert!(ca.issue(&Name::head(), Role::Node, now).is_err());
    assert!(ca.issue(&Name::head(), Role::Client, now).is_err());
}

#[test]
fn broken_files_are_named() {
    let (_folder, state) = state();
    let now = SystemTime::now();
    let ca = state.init_ca(false, now).unwrap();
    state.issue(&ca, &name("node-1"), Role::Node, false, now).unwrap();
    state.issue(&ca, &name("node-2"), Role::Node, false, now).unwrap();
    let path = state.identity_path(&name("node-1"));
    let (first, second) = (
        fs::read_to_string(&path).unwrap(),
        fs::read_to_string(state.identity_path(&name("node-2"))).unwrap(),
    );
    let key = |text: &str| text[text.find("-----BEGIN PRIVATE").unwrap()..].to_owned();
    let mixed = first.replace(&key(&first), &key(&second));
    let cases = [
        ("empty", String::new()),
        ("cut", first[..first.len() / 2].to_owned()),
        ("no key", first.replace(&key(&first), "")),
        ("key of another", mixed),
        ("certificate of another", second),
        ("too long", "x".repeat(5 << 20)),
        ("not PEM", "hello".to_owned()),
    ];
    for (case, text) in cases {
        fs::write(&path, text).unwrap();
        let error = state.load(&name("node-1")).unwrap_err().to_string();
        assert!(error.contains("node-1.pem") && error.contains("hint: "), "{case}: {error}");
    }
    let missing = state.load(&name("node-3")).unwrap_err().to_string();
    assert!(missing.contains("node-3.pem") && missing.contains("certs init"), "{missing}");
    fs::write(state.folder().join("admitted"), "zz node-1\n").unwrap();
    let error = state.admitted().unwrap_err().to_string();
    assert!(error.contains("line 1 is not a fingerprint and a name"), "{error}");
}

#[test]
fn the_list_is_a_file_that_others_may_change() {
    let (_folder, state) = state();
    let now = SystemTime::now();
    let ca = state.init_ca(false, now).unwrap();
    let first = state.issue(&ca, &name("node-1"), Role::Node, false, now).unwrap();
    let (here, there) = (state.admitted().unwrap(), state.admitted().unwrap());
    let second = ca.issue(&name("node-2"), Role::Node, now).unwrap();
    there.add(second.passport()).unwrap();
    assert!(!here.contains(second.passport().fingerprint()));
    // A change here keeps what another process has written, and learns it.
    let third = ca.issue(&name("node-3"), Role::Node, now).unwrap();
    here.add(third.passport()).unwrap();
    assert!(here.contains(second.passport().fingerprint()));
    assert!(there.revoke(first.passport().fingerprint()).unwrap());
    assert!(!there.revoke(first.passport().fingerprint()).unwrap());
    assert!(here.contains(first.passport().fingerprint()));
    here.reload().unwrap();
    assert!(!here.contains(first.passport().fingerprint()));
    assert!(there.contains(third.passport().fingerprint()));
    assert!(Admitted::everyone().contains(Fingerprint::of(b"anything")));
}

#[test]
fn fingerprints_as_text() {
    let fingerprint = Fingerprint::of(b"");
    let text = fingerprint.to_string();
    assert!(text.starts_with("e3b0c442"), "{text}");
    assert_eq!(text.parse(), Ok(fingerprint));
    for bad in ["", "e3", &text[1..], &format!("{text}0"), &text.replace('e', "+")] {
        assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
    }
}
