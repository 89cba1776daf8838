//! What nodes with GPUs need: of this host the build, the devices and their libraries; of every node the variables of
//! NCCL that its ranks will see.

use super::Check;
use dg_config::{ClusterFile, Node, NodeDevice};
use dg_nccl::facts::{DriverFacts, Facts};
use dg_nccl::variables::{self, Host, Verdict};
use std::collections::BTreeMap;

/// Nothing without such nodes.
pub(super) fn checks(file: &ClusterFile) -> Vec<Check> {
    let nodes: Vec<(&Node, &[u32])> =
        file.nodes.iter().filter_map(|node| Some((node, gpus(node)?))).collect();
    let local: Vec<(&Node, &[u32])> = nodes.iter().copied().filter(|(node, _)| node.local).collect();
    let mut checks = Vec::new();
    if !local.is_empty() {
        checks.push(build(cfg!(feature = "cuda")));
        checks.extend(devices(&local, &dg_nccl::facts::look()));
    }
    let (here, host) = (std::env::vars_os().filter_map(text).collect(), Host::this());
    checks.extend(nodes.iter().flat_map(|(node, _)| environment(node, &here, &host)));
    checks
}

fn gpus(node: &Node) -> Option<&[u32]> {
    match &node.device {
        NodeDevice::Cpu => None,
        NodeDevice::Cuda { gpus, .. } => Some(gpus),
    }
}

fn text((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

/// Ranks are processes of this program.
fn build(has_cuda: bool) -> Check {
    let name = "cuda build";
    if has_cuda {
        return Check::ok(name, "ranks of this program compute on GPUs");
    }
    let hint = "build diffgentor and dg-cluster with `--features cuda` (docs/gpu.md)";
    Check::fail(name, "this program, which ranks are processes of, is built without CUDA", hint)
}

/// A line for each node, and what its ranks need besides.
fn devices(nodes: &[(&Node, &[u32])], facts: &Facts) -> Vec<Check> {
    let driver = match &facts.driver {
        Ok(driver) => driver,
        Err(error) => return vec![obstacle("gpus", &error.to_string())],
    };
    let names = names(driver, facts);
    let mut checks: Vec<Check> = nodes.iter().map(|(node, gpus)| present(node, gpus, &names)).collect();
    if let Some(why) = facts.obstacle() {
        checks.push(obstacle("cuda", &why));
    }
    let are_several = nodes.iter().map(|(_, gpus)| gpus.len()).sum::<usize>() > 1;
    match &facts.nccl {
        Ok(nccl) => checks.push(Check::ok("nccl", format!("{}, {}", nccl.version, nccl.path.display()))),
        Err(error) if are_several => {
            let error = error.to_string();
            let (what, hint) = error.split_once("; hint: ").unwrap_or((&error, "docs/gpu.md has more"));
            let hint = format!("{hint}; without it tensors go through the host, which is slow");
            checks.push(Check::warn("nccl", what, hint));
        }
        Err(_) => {}
    }
    checks
}

/// Devices as `nvidia-smi` numbers them; without NVML those that the driver shows this process.
fn names(driver: &DriverFacts, facts: &Facts) -> Vec<String> {
    match &facts.nvml {
        Ok(nvml) => nvml.devices.iter().map(|usage| usage.name.clone()).collect(),
        Err(_) => driver.devices.iter().map(|device| device.name.clone()).collect(),
    }
}

fn present(node: &Node, gpus: &[u32], names: &[String]) -> Check {
    let name = "gpus";
    let of = |gpu: &u32| names.get(*gpu as usize);
    if let Some(missing) = gpus.iter().find(|gpu| of(gpu).is_none()) {
        let there = match names.len() {
            0 => "sees none".to_owned(),
            1 => "has only GPU 0".to_owned(),
            n => format!("has GPUs 0-{}", n - 1),
        };
        let hint =
            "correct `gpus`; they are numbered as by `nvidia-smi`, and CUDA_VISIBLE_DEVICES hides some";
        return Check::fail(
            name,
            format!("node `{}` is to have GPU {missing}, this host {there}", node.name),
            hint,
        );
    }
    let list: Vec<String> = gpus.iter().filter_map(|gpu| Some(format!("{gpu} {}", of(gpu)?))).collect();
    Check::ok(name, format!("node `{}`: {}", node.name, list.join(", ")))
}

/// Of the form `WHAT; hint: HINT`.
fn obstacle(name: &'static str, why: &str) -> Check {
    let (what, hint) = why.split_once("; hint: ").unwrap_or((why, "docs/gpu.md has what a GPU needs"));
    Check::fail(name, what, hint)
}

/// Variables of NCCL: those of the node in the file, and on this host those that its ranks inherit. One line for all
/// that are well, and one for each that is not.
fn environment(node: &Node, here: &BTreeMap<String, String>, host: &Host) -> Vec<Check> {
    let name = "nccl env";
    let mut all = if node.local { here.clone() } else { BTreeMap::new() };
    all.extend(node.env.clone());
    let found = variables::look(&all, node.local.then_some(host));
    let whence = |variable: &str| if node.env.contains_key(variable) { "" } else { " (environment)" };
    let mut checks = Vec::new();
    let mut fine = Vec::new();
    for finding in found {
        let set = format!("{}={}{}", finding.name, finding.value, whence(&finding.name));
        let (check, what): (fn(_, _, _) -> Check, _) = match finding.verdict {
            Verdict::Fine => {
                fine.push(set);
                continue;
            }
            Verdict::Odd(what) => (Check::warn, what),
            Verdict::Bad(what) => (Check::fail, what),
        };
        let hint = format!("change {}, or leave it out; docs/gpu.md has those that matter", finding.name);
        checks.push(check(name, format!("node `{}`: {set}: {what}", node.name), hint));
    }
    if !fine.is_empty() {
        checks.insert(0, Check::ok(name, format!("node `{}`: {}", node.name, fine.join(", "))));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use dg_nccl::GpuError;
    use dg_nccl::driver::About;
    use dg_nccl::facts::Found;
    use std::path::Path;

    const TWO: &str = "[cluster]\nlisten = \"10.0.0.1:7443\"\n\
        [[node]]\nname = \"a\"\nlocal = true\naddress = \"10.0.0.1\"\ngpus = [0, 1]\n\
        [node.env]\nNCCL_SOCKET_IFNAME = \"ib0\"\nNCCL_DEBUG = \"WARN\"\n\
        [[node]]\nname = \"b\"\naddress = \"10.0.0.2\"\ngpus = [0]\n\
        [node.env]\nNCCL_SOCKET_IFNAME = \"ib0\"\nNCCL_SOKET_FAMILY = \"AF_INET\"\n";

    fn facts(devices: usize) -> Facts {
        let found = |version: &str| Found { path: "/lib/x.so".into(), version: version.into() };
        let device = About { name: "H200".into(), bytes: 1 << 30, capability: (9, 0) };
        Facts {
            driver: Ok(DriverFacts { library: found("12.8"), devices: vec![device; devices] }),
            nvml: Err("not here".into()),
            nvrtc: Ok(found("12.8")),
            headers: Some("/usr/include".into()),
            nccl: Ok(found("2.27.3")),
        }
    }

    fn said(checks: &[Check]) -> Vec<(&'static str, Status)> {
        checks.iter().map(|check| (check.name, check.status)).collect()
    }

    fn with<T>(text: &str, body: impl FnOnce(&[(&Node, &[u32])]) -> T) -> T {
        let file = ClusterFile::read(Path::new("x.toml"), text).unwrap();
        let nodes: Vec<(&Node, &[u32])> =
            file.nodes.iter().filter_map(|node| Some((node, gpus(node)?))).collect();
        body(&nodes)
    }

    #[test]
    fn gpus_of_the_file_must_be_there() {
        with(TWO, |nodes| {
            let local = &nodes[..1];
            let good = devices(local, &facts(2));
            assert_eq!(said(&good), [("gpus", Status::Ok), ("nccl", Status::Ok)]);
            assert_eq!(good[0].detail, "node `a`: 0 H200, 1 H200");
            let one = devices(local, &facts(1));
            assert!(one[0].status == Status::Fail, "{one:?}");
            assert_eq!(one[0].detail, "node `a` is to have GPU 1, this host has only GPU 0");
            let bare = Facts {
                nccl: Err(GpuError::NoNccl { tried: "libnccl.so.2".into(), reason: "not found".into() }),
                headers: None,
                ..facts(2)
            };
            let bare = devices(local, &bare);
            assert_eq!(said(&bare), [("gpus", Status::Ok), ("cuda", Status::Fail), ("nccl", Status::Warn)]);
            let old = Facts { nvrtc: Ok(Found { path: "x".into(), version: "13.0".into() }), ..facts(2) };
            let old = devices(local, &old);
            assert_eq!(said(&old), [("gpus", Status::Ok), ("cuda", Status::Fail), ("nccl", Status::Ok)]);
            assert!(old[1].detail.contains("NVRTC is of CUDA 13.0") && old[1].hint.is_some(), "{old:?}");
            let none = GpuError::NoDriver { tried: "libcuda.so.1".into(), reason: "not found".into() };
            let none = devices(local, &Facts { driver: Err(none), ..facts(0) });
            assert_eq!(said(&none), [("gpus", Status::Fail)]);
            assert!(
                none[0].detail.contains("no NVIDIA driver") && !none[0].detail.contains("hint"),
                "{none:?}"
            );
        });
        assert_eq!((build(true).status, build(false).status), (Status::Ok, Status::Fail));
    }

    #[test]
    fn variables_of_the_file_stand_above_those_of_the_environment() {
        let here = [("NCCL_SOCKET_IFNAME", "eth0"), ("NCCL_P2P_DISABLE", "1"), ("HOME", "/")];
        let here = here.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let host = Host { interfaces: vec!["eth0".into(), "lo".into()], adapters: Vec::new() };
        with(TWO, |nodes| {
            let a = environment(nodes[0].0, &here, &host);
            assert_eq!(said(&a), [("nccl env", Status::Ok), ("nccl env", Status::Fail)]);
            assert_eq!(a[0].detail, "node `a`: NCCL_DEBUG=WARN, NCCL_P2P_DISABLE=1 (environment)");
            let expected = "node `a`: NCCL_SOCKET_IFNAME=ib0: this host has no such interface: eth0, lo";
            assert_eq!(a[1].detail, expected);
            // the host of `b` may have it, and its ranks do not inherit from here
            let b = environment(nodes[1].0, &here, &host);
            assert_eq!(said(&b), [("nccl env", Status::Ok), ("nccl env", Status::Warn)]);
            assert_eq!(b[0].detail, "node `b`: NCCL_SOCKET_IFNAME=ib0");
            assert!(b[1].detail.contains("NCCL_SOKET_FAMILY") && b[1].hint.is_some(), "{b:?}");
        });
    }
}
