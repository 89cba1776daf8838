//! What a cluster needs of this machine.

use super::Check;
use crate::failure::Failure;
use crate::model;
use crate::table::count;
use dg_config::{Address, ClusterFile, Key, Launch, Layers, state_folder};
use dg_net::identity::{Audit, Auditor, RENEW_BEFORE, State};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

/// All of them.
pub(super) fn checks(file: &ClusterFile) -> Vec<Check> {
    let folder = state_folder(file);
    let state = state(&folder);
    let mut checks = vec![listen(&file.cluster.listen), state];
    if let Ok(state) = State::open(folder) {
        checks.push(certificates(&state, file, SystemTime::now()));
    }
    checks.extend(ssh(file, std::env::var_os("PATH").as_deref()));
    checks.extend(models(file));
    checks
}

/// Whether a head could listen there now.
fn listen(address: &Address) -> Check {
    let name = "listen";
    let port = address.port.unwrap_or(0);
    let resolved = (address.host.as_str(), port).to_socket_addrs();
    let Some(at) = resolved.ok().and_then(|mut addresses| addresses.next()) else {
        let hint = "write an IP address, or give this host the name";
        return Check::warn(name, format!("`{address}` has no address here"), hint);
    };
    match UdpSocket::bind(at) {
        Ok(_) => Check::ok(name, format!("UDP port {port} of {} is free", address.host)),
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            let hint = "is the cluster running already? else free the port, or change `listen`";
            Check::fail(name, format!("UDP port {port} of {} is in use", address.host), hint)
        }
        Err(e) if e.kind() == ErrorKind::AddrNotAvailable => {
            let hint = "the head must run on the host that has it; here, change `listen`";
            Check::warn(name, format!("this host does not have the address {}", address.host), hint)
        }
        Err(e) => Check::fail(name, format!("{address}: {e}"), "change `listen`"),
    }
}

fn state(folder: &Path) -> Check {
    let name = "state folder";
    let shown = folder.display();
    match folder.metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Check::warn(name, format!("{shown} is not there yet"), "`dg-cluster certs init` makes it")
        }
        Err(e) => Check::fail(name, format!("{shown}: {e}"), "name another folder (`state_dir`)"),
        Ok(found) if !found.is_dir() => {
            Check::fail(name, format!("{shown} is not a folder"), "name another one (`state_dir`)")
        }
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            let mode = found.permissions().mode() & 0o777;
            Check::fail(
                name,
                format!("{shown}: others may use it (mode {mode:03o})"),
                format!("chmod 700 {shown}"),
            )
        }
        Ok(_) => Check::ok(name, format!("{shown}, private")),
    }
}

/// Those of the authority, the head and the nodes of this host must be good; others may have been revoked.
fn certificates(state: &State, cluster: &ClusterFile, now: SystemTime) -> Check {
    let name = "certificates";
    let audits = match Auditor::open(state).and_then(|auditor| auditor.all(now)) {
        Ok(audits) => audits,
        Err(e) => {
            let Failure { message, hint, .. } = e.into();
            return Check::fail(name, message, hint);
        }
    };
    let file = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let local: Vec<String> =
        cluster.nodes.iter().filter(|node| node.local).map(|node| format!("{}.pem", node.name)).collect();
    let is_needed = |path: &Path| {
        let file = file(path);
        file == "ca.key" || file == "head.pem" || local.contains(&file)
    };
    let bad = audits.iter().filter_map(|audit| Some((audit, audit.faults.first()?)));
    // a needed one first
    if let Some((audit, fault)) = bad.min_by_key(|(audit, _)| !is_needed(&audit.path)) {
        let status = if is_needed(&audit.path) { Check::fail } else { Check::warn };
        return status(name, format!("{}: {}", file(&audit.path), fault.what), fault.hint.to_string());
    }
    let detail = count(audits.len(), "certificate");
    let ends = |audit: &&Audit| audit.validity.is_some_and(|(_, until)| until < now + RENEW_BEFORE);
    if let Some(audit) = audits.iter().find(ends) {
        let detail = format!("{detail}, {} ends within 30 days", file(&audit.path));
        return Check::warn(name, detail, "`dg-cluster certs renew --all`");
    }
    if audits.is_empty() {
        return Check::warn(name, "none yet", "`dg-cluster certs init` makes them");
    }
    let is_missing = |name: &&String| !audits.iter().any(|audit| file(&audit.path) == **name);
    match local.iter().find(is_missing).filter(|_| state.has_ca()) {
        Some(missing) => {
            Check::warn(name, format!("{detail}, but no {missing}"), "`dg-cluster certs issue` makes it")
        }
        None => Check::ok(name, format!("{detail}, all good")),
    }
}

/// Only if a node is started by it.
fn ssh(file: &ClusterFile, path: Option<&OsStr>) -> Option<Check> {
    let node = file.nodes.iter().find(|node| matches!(node.launch, Launch::Ssh { .. }))?;
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let found = std::env::split_paths(path?).map(|folder| folder.join("ssh")).find(|path| is_program(path));
    Some(match found {
        Some(path) => Check::ok("ssh", path.display().to_string()),
        None => {
            let hint = "install an ssh client, or write `launch = \"manual\"`";
            Check::fail("ssh", format!("not on PATH, but node `{}` is started by it", node.name), hint)
        }
    })
}

/// One line for each model that a node of this host uses; what other hosts have is not known here.
fn models(file: &ClusterFile) -> Vec<Check> {
    let mut layers = Layers::default();
    layers.add_cluster_file(file);
    let settings = layers.resolve();
    let named = settings.text(Key::ModelName).unwrap_or(model::DEMO).to_string();
    let local = file.nodes.iter().filter(|node| node.local);
    let name = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let mut names: Vec<String> =
        local.map(|node| name(&node.model_path).unwrap_or_else(|| named.clone())).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return vec![Check::ok("model", format!("{named}, and no node is on this host"))];
    }
    names.iter().map(|name| model(name)).collect()
}

fn model(name: &str) -> Check {
    match model::find(name) {
        Ok(Some(place)) => Check::ok("model", format!("{name}: {place}")),
        Ok(None) => {
            let hint = format!(
                "fetch it: `diffgentor t2i --model_name {name} --prompt x --dry_run`, or name a folder"
            );
            Check::warn("model", format!("{name} is not in the hub's cache of this host"), hint)
        }
        Err(Failure { message, hint, .. }) => Check::fail("model", message, hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use dg_net::identity::{Name, Role};
    use std::time::Duration;

    fn expect(check: &Check, status: Status, said: &str) {
        assert!(check.status == status && check.detail.contains(said), "{check:?}");
        assert_eq!(check.hint.is_none(), status == Status::Ok, "{check:?}");
    }

    #[test]
    fn a_port_is_free_or_not() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let at = |host: &str| Address { host: host.into(), port: Some(port) };
        expect(&listen(&at("127.0.0.1")), Status::Fail, "is in use");
        drop(taken);
        expect(&listen(&at("127.0.0.1")), Status::Ok, "is free");
        // TEST-NET-1, which no host has
        expect(&listen(&at("192.0.2.1")), Status::Warn, "does not have the address");
    }

    #[test]
    fn a_state_folder_is_private_and_its_certificates_good() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = "[[node]]\nname = \"a\"\nlocal = true\n";
        let cluster = ClusterFile::read(Path::new("x.toml"), cluster).unwrap();
        let (path, now) = (folder.path().join("state"), SystemTime::now());
        expect(&state(&path), Status::Warn, "not there yet");
        let kept = State::create(&path).unwrap();
        expect(&state(&path), Status::Ok, "private");
        expect(&certificates(&kept, &cluster, now), Status::Warn, "none yet");
        let ca = kept.init_ca(false, now).unwrap();
        kept.issue(&ca, &Name::head(), Role::Head, false, now).unwrap();
        expect(&certificates(&kept, &cluster, now), Status::Warn, "but no a.pem");
        let name = |text| Name::parse(text).unwrap();
        kept.issue(&ca, &name("a"), Role::Node, false, now).unwrap();
        expect(&certificates(&kept, &cluster, now), Status::Ok, "3 certificates, all good");
        kept.issue(&ca, &name("alice"), Role::Client, false, now).unwrap();
        kept.admitted().unwrap().revoke_name(&name("alice")).unwrap();
        expect(&certificates(&kept, &cluster, now), Status::Warn, "alice.pem: it is not admitted");
        std::fs::remove_file(kept.identity_path(&name("alice"))).unwrap();
        let days = |n: u64| Duration::from_secs(n * 86_400);
        expect(&certificates(&kept, &cluster, now + days(70)), Status::Warn, "a.pem ends within 30 days");
        expect(&certificates(&kept, &cluster, now + days(91)), Status::Fail, "a.pem: it ended");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).unwrap();
        expect(&state(&path), Status::Fail, "mode 750");
    }

    #[test]
    fn ssh_is_looked_for_where_it_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let path = Some(folder.path().as_os_str());
        let file = |text: &str| ClusterFile::read(Path::new("x.toml"), text).unwrap();
        let local = file("[[node]]\nname = \"a\"\nlocal = true\n");
        assert_eq!(ssh(&local, path), None);
        let far = "[cluster]\nlisten = \"10.0.0.1:7443\"\n[[node]]\nname = \"a\"\naddress = \"10.0.0.2\"\nssh = \"u@h\"\n";
        expect(&ssh(&file(far), path).unwrap(), Status::Fail, "node `a`");
        std::fs::write(folder.path().join("ssh"), "").unwrap();
        expect(&ssh(&file(far), path).unwrap(), Status::Fail, "not on PATH");
        std::fs::set_permissions(folder.path().join("ssh"), PermissionsExt::from_mode(0o755)).unwrap();
        expect(&ssh(&file(far), path).unwrap(), Status::Ok, "/ssh");
    }

    #[test]
    fn the_model_must_be_there() {
        let file = |text: &str| ClusterFile::read(Path::new("x.toml"), text).unwrap();
        expect(&models(&file("[model]\nname = \"demo\"\n"))[0], Status::Ok, "demo: built in");
        expect(&models(&file("[model]\nname = \"nowhere\"\n"))[0], Status::Fail, "`nowhere`");
        let far = "[cluster]\nlisten = \"10.0.0.1:7443\"\n[[node]]\nname = \"a\"\naddress = \"10.0.0.2\"\n";
        expect(&models(&file(far))[0], Status::Ok, "no node is on this host");
    }
}
