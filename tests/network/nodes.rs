//! Nodes on two hosts with a cable between them: what goes over it, and what happens when it does not.

use crate::net::Net;
use crate::rig::{Rig, SMALL, TIMEOUT, alone, flag};
use dg_core::report::Report;
use dg_testkit::program::finish;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const IDLE: Duration = Duration::from_millis(1500);

/// Head and node `near` on one host, node `far` on the other, two ranks each.
fn rig(test: &str) -> Option<Rig> {
    let net = Net::new(test)?;
    let sections = format!(
        "keep_alive = \"250ms\"\nidle_timeout = \"1500ms\"\nlease_ttl = \"3s\"\n\
         [[node]]\nname = \"near\"\nlocal = true\naddress = \"{}\"\nranks = 2\ncpu_threads = 1\n\
         [[node]]\nname = \"far\"\naddress = \"{}\"\nlaunch = \"manual\"\nranks = 2\ncpu_threads = 1\n\
         [parallel]\nulysses_degree = 4\n",
        Net::ADDRESSES[0],
        Net::ADDRESSES[1]
    );
    let mut rig = Rig::up(&sections, Some(net), false);
    // The key goes to the other host by hand, in a folder of its own.
    let folder = rig.path("far-state");
    std::fs::create_dir(&folder).expect("a new folder");
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("our own");
    rig.cluster(&["certs", "issue", "--cluster", "rig.toml", "--node", "far", "--out", "far-state/far.pem"])
        .expect_success();
    rig.agent("far", &folder, 1);
    rig.await_ready(Duration::from_secs(60));
    Some(rig)
}

/// A job that outlasts a lost connection.
const LONG: &[&str] = &[
    "--prompt",
    "red apple",
    "--seed",
    "7",
    "--height",
    "256",
    "--width",
    "256",
    "--num_inference_steps",
    "60",
];

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// Ports on which something listens in a host: TCP and UDP.
fn listeners(rig: &Rig, host: usize) -> [Vec<String>; 2] {
    let of = |kind: &str| -> Vec<String> {
        let table = rig.net().run(host, &["ss", "-H", "-l", "-n", "-p", kind]);
        table.lines().map(str::to_owned).collect()
    };
    [of("-t"), of("-u")]
}

/// On which addresses of which hosts something listens on TCP while `work` lasts.
fn while_listening<T>(rig: &Rig, work: impl FnOnce() -> T) -> BTreeSet<(usize, Ipv4Addr)> {
    let status = rig.status();
    let agents = [0, 1].map(|node| status["nodes"][node]["pid"].as_u64().expect("an agent"));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !is_over.load(Ordering::Relaxed) {
                for (host, agent) in agents.iter().enumerate() {
                    seen.extend(listening(*agent).into_iter().map(|address| (host, address)));
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            seen
        });
        work();
        is_over.store(true, Ordering::Relaxed);
        look.join().expect("no panic")
    })
}

/// Where something listens on TCP in the host of a process, as the kernel tells it: `ss` takes too long.
fn listening(pid: u64) -> Vec<Ipv4Addr> {
    let table = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let address = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, is_listening) = (fields.get(1)?.split_once(':')?.0, fields.get(3) == Some(&"0A"));
        let number = u32::from_str_radix(local, 16).unwrap_or(0);
        is_listening.then(|| Ipv4Addr::from(number.to_le_bytes()))
    };
    [table("tcp"), table("tcp6")].iter().flat_map(|table| table.lines().skip(1).filter_map(address)).collect()
}

#[test]
fn two_hosts_draw_one_picture_and_send_what_the_report_says() {
    let _alone = alone();
    let Some(rig) = rig("two hosts") else { return };
    let [tcp, udp] = listeners(&rig, 0);
    assert!(tcp.is_empty(), "nothing listens on TCP while no job runs: {tcp:#?}");
    assert!(udp.iter().any(|line| line.contains(":7443")), "the head listens on UDP: {udp:#?}");
    let large = [LONG, &["--report", "report.json"]].concat();
    let serial = rig.serial(LONG);
    let before = rig.net().tcp_bytes();
    // They listen only while they look for each other: a moment.
    let seen = while_listening(&rig, || finish(rig.start("large", &large), TIMEOUT).expect_success());
    println!("on TCP meanwhile: {seen:?}");
    assert!(!seen.is_empty(), "ranks of two hosts meet");
    let own = |host: usize| Net::ADDRESSES[host].parse::<Ipv4Addr>().expect("an address");
    assert!(seen.iter().all(|(host, address)| *address == own(*host)), "{seen:?}");
    assert!(rig.tree("large") == serial, "the serial picture");
    let counted = rig.net().tcp_bytes() - before;
    let text = std::fs::read(rig.path("report.json")).expect("a report");
    let report: Report = serde_json::from_slice(&text).expect("a report");
    let between: u64 = between(&report);
    let factor = counted as f64 / between as f64;
    println!(
        "{between} bytes between the nodes by the report, {counted} on the cable with all headers: × {factor:.4}"
    );
    assert!((factor / HEADERS - 1.0).abs() < 0.05, "× {factor}, expected × {HEADERS}");
    assert_eq!(report.ranks.len(), 4);
}

/// TLS puts 22 bytes around at most 16 KiB, TCP and IP 52 before at most 64 KiB that the kernel hands over at once (1448
/// on a real cable), and 52 for each answer.
const HEADERS: f64 = 1.01;

/// Bytes that ranks of one node have sent to ranks of the other.
fn between(report: &Report) -> u64 {
    let node = |rank: u32| rank / 2;
    let sent = report.ranks.iter().flat_map(|rank| rank.sent.values().map(move |sent| (rank.rank, sent)));
    let to = sent.flat_map(|(from, sent)| sent.to.iter().map(move |(to, bytes)| (from, to, *bytes)));
    to.filter(|(from, to, _)| node(**to) != node(*from)).map(|(.., bytes)| bytes).sum()
}

/// Loses the node by `rules` while a job runs; it finishes on the others, and the node comes back by itself.
fn partition(rig: &Rig, what: &str, rules: &str) {
    let serial = rig.serial(LONG);
    let fences = || rig.agent_log("far").matches("the lease of this node is over").count();
    let (seen, fences_before) = (rig.events().len(), fences());
    let job = rig.start(what, LONG);
    rig.await_status("running", Duration::from_secs(30), |status| {
        let ranks = status["ranks"].as_array().expect("a list");
        ranks.iter().all(|rank| rank["state"] == "busy" && rank["step"].as_u64() > Some(0))
    });
    let cut = now();
    rig.net().rules(rules).expect("rules");
    let lost = rig.await_event("node_lost", "far", seen, (IDLE + Duration::from_millis(500)) * 5) - cut;
    let begin = Instant::now();
    while fences() == fences_before {
        assert!(begin.elapsed() < Duration::from_secs(15), "it is not fenced: {}", rig.agent_log("far"));
        std::thread::sleep(Duration::from_millis(10));
    }
    let fenced = now() - cut;
    finish(job, TIMEOUT).expect_success();
    assert!(rig.tree(what) == serial, "{what}: the same bytes");
    let done = now() - cut;
    let seen = rig.events().len();
    let healed = now();
    rig.net().heal();
    let back = rig.await_event("node_joined", "far", seen, Duration::from_secs(5 * 5)) - healed;
    rig.await_ready(Duration::from_secs(30));
    println!(
        "{what}: lost after {lost:.2} s (idle timeout {IDLE:?}), fenced after {fenced:.2} s, the job done after \
         {done:.2} s, back {back:.2} s after it was healed"
    );
    assert!(rig.pictures(&format!("{what}-after"), SMALL) == rig.serial(SMALL));
}

#[test]
fn a_node_that_is_cut_off_is_lost_and_fenced_and_comes_back() {
    let _alone = alone();
    let Some(rig) = rig("partitions") else { return };
    let to = "output oifname != \"lo\" meta l4proto udp drop\n";
    let from = "input iifname != \"lo\" meta l4proto udp drop\n";
    partition(&rig, "both ways", &[to, from].concat());
    // It is heard, but does not hear.
    partition(&rig, "one way", to);
    if flag("DG_FLAPS", 3) > 3 {
        partition(&rig, "the other way", from);
    }
}

#[test]
fn a_cable_that_comes_and_goes_loses_no_job() {
    let _alone = alone();
    let Some(rig) = rig("flapping") else { return };
    let serial = rig.serial(LONG);
    let job = rig.start("flaps", LONG);
    for _ in 0..flag("DG_FLAPS", 3) {
        std::thread::sleep(Duration::from_secs(1));
        rig.net().rules("input iifname != \"lo\" drop\noutput oifname != \"lo\" drop\n").expect("rules");
        std::thread::sleep(Duration::from_secs(1));
        rig.net().heal();
    }
    finish(job, TIMEOUT).expect_success();
    assert!(rig.tree("flaps") == serial, "the same bytes");
    rig.await_ready(Duration::from_secs(30));
    let lost = rig.events().iter().filter(|event| event["kind"] == "node_lost").count();
    println!("flapping: the node was lost {lost} times");
}

#[test]
fn a_cable_that_loses_packets_slows_jobs_down_and_changes_nothing() {
    let _alone = alone();
    let Some(rig) = rig("loss") else { return };
    let serial = rig.serial(SMALL);
    // A fifth lost takes TCP minutes.
    for percent in [0, 5, 10, 20].into_iter().filter(|percent| *percent <= flag("DG_LOSS", 10)) {
        let rule = |chain: &str, device: &str| {
            format!(
                "{chain} {device} != \"lo\" meta l4proto {{ tcp, udp }} numgen random mod 100 < {percent} drop\n"
            )
        };
        rig.net().rules(&(rule("input", "iifname") + &rule("output", "oifname"))).expect("rules");
        let begin = Instant::now();
        let output = finish(rig.start(&format!("loss-{percent}"), SMALL), TIMEOUT);
        output.expect_success();
        println!("{percent} % lost: a job in {:.2?}", begin.elapsed());
        assert!(rig.tree(&format!("loss-{percent}")) == serial, "{percent} %: the same bytes");
    }
    rig.net().heal();
    rig.await_ready(Duration::from_secs(30));
}
