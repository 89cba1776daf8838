//! Peers that are let in and then do not do what they should: each is dealt with, and nobody else is the worse for it.

use crate::raw::{self, frame};
use crate::rig::{Rig, SMALL, TIMEOUT, alone, run};
use dg_core::{DType, GenerateRequest, ImageSize, Seed, Steps, TimeDtype};
use dg_net::bus::{Bus, Link, Received};
use dg_net::endpoint::Peer;
use dg_net::wire;
use dg_plan::{Ask as Layouts, Layout};
use dg_runtime::fleet::client::{Ask, CLIENT, HeadClient, Options};
use dg_runtime::fleet::job::JobBody;
use dg_runtime::fleet::protocol::{Down, RankSay, Up};
use dg_runtime::logic::cluster::Stamp;
use dg_runtime::logic::cluster::epoch::Trouble;
use dg_testkit::program::finish;
use std::time::{Duration, Instant};

/// The ranks of `left` work; `evil` has a place in the file, and what sits there is the test.
pub(crate) fn rig() -> Rig {
    rig_with("", 2)
}

/// The same, with more nodes.
fn rig_with(nodes: &str, replicas: usize) -> Rig {
    let two = "[[node]]\nname = \"left\"\nlocal = true\nranks = 2\ncpu_threads = 1\n\
               [[node]]\nname = \"evil\"\nlocal = true\nlaunch = \"manual\"\nranks = 2\ncpu_threads = 1\n";
    let degrees = format!("[parallel]\nulysses_degree = 2\ndata_parallel_degree = {replicas}\n");
    let rig = Rig::up(&[two, nodes, &degrees].concat(), None, false);
    rig.await_status("left is up", Duration::from_secs(30), |status| {
        status["ranks"].as_array().expect("a list").iter().take(2).all(|rank| rank["state"] == "idle")
    });
    rig
}

async fn client(rig: &Rig) -> HeadClient {
    HeadClient::of_state(&rig.state(), CLIENT, Options::beside_cpu_ranks()).await.expect("a head")
}

/// The node joins and says that it has the model, and so is in.
async fn join(rig: &Rig) -> (Bus, Link) {
    let card = client(rig).await.model(None).await.expect("left has it");
    let (bus, link) = raw::join(rig, "evil").await;
    let card = serde_json::to_string(&card).expect("JSON");
    link.cast(&Up::Model("demo".into(), Ok(card))).expect("a connection");
    (bus, link)
}

/// Waits for the end of a connection that the head has to end, and gives the reason.
async fn ended(link: &Link) -> String {
    let begin = Instant::now();
    let closed = tokio::time::timeout(Duration::from_secs(5 * 5), link.peer().connection().closed()).await;
    let reason = closed.expect("the head ends the connection").to_string();
    println!("ended after {:.1?}: {reason}", begin.elapsed());
    reason
}

#[test]
fn a_node_that_does_not_renew_its_lease_sees_its_connection_end() {
    let _alone = alone();
    let rig = rig();
    let is = |state: &'static str| move |status: &serde_json::Value| status["nodes"][1]["state"] == state;
    run(async {
        let (bus, link) = join(&rig).await;
        rig.await_status("with it", Duration::from_secs(5), is("up"));
        let reason = ended(&link).await;
        assert!(reason.contains("the lease was not renewed"), "{reason}");
        bus.stop();
    });
    rig.await_status("without it", Duration::from_secs(5), is("down"));
    assert!(rig.pictures("after", SMALL) == rig.serial(SMALL));
}

#[test]
fn a_node_whose_actors_are_gone_sees_its_connection_end() {
    let _alone = alone();
    let rig = rig();
    run(async {
        let (bus, link) = join(&rig).await;
        bus.stop();
        let reason = ended(&link).await;
        assert!(reason.contains("session"), "{reason}");
    });
    assert!(rig.pictures("after", SMALL) == rig.serial(SMALL));
}

/// A job that takes minutes.
fn long(model: Option<&str>) -> Vec<u8> {
    let (size, _) = ImageSize::fit(256, 256).expect("a size");
    let mut request = GenerateRequest::new("nobody waits for it", size, Seed(1));
    request.num_inference_steps = Steps::try_from(400).expect("within limits");
    let body = JobBody {
        batch: vec![request],
        model: model.map(str::to_owned),
        model_hash: None,
        ask: Layouts::layout(Layout { ulysses: 2, ..Layout::SERIAL }),
        request_images: 1,
        dtype: DType::Float32,
        time_dtype: TimeDtype::Model,
        tf32: false,
        vae_tiling: None,
        ranks_on: None,
        priority: 0,
    };
    serde_json::to_vec(&body).expect("JSON")
}

/// Hands a job in and goes after a while, without a word.
async fn submit_and_go(peer: &Peer, body: &[u8], after: Duration) {
    let (mut send, mut receive) = peer.connection().open_bi().await.expect("a stream");
    let submit = wire::encode(&Ask::Submit).expect("a message");
    let all =
        [frame(submit.len() as u32, &submit), (body.len() as u64).to_be_bytes().to_vec(), body.to_vec()];
    send.write_all(&all.concat()).await.expect("it is heard");
    let _ = send.finish();
    tokio::time::sleep(after).await;
    let _ = receive.stop(0u32.into());
}

#[test]
fn nobody_draws_for_a_client_that_has_gone_before_its_job_was_made() {
    let _alone = alone();
    let rig = rig();
    let is_idle = |status: &serde_json::Value| status["waiting"] == 0 && status["running"] == 0;
    run(async {
        let peer = raw::connect(&rig, CLIENT).await;
        for number in 0..60_u64 {
            submit_and_go(&peer, &long(None), Duration::from_micros(number * 20)).await;
        }
        rig.await_status("without jobs", Duration::from_secs(20), is_idle);
        // Or while the nodes look for its model, which takes one of them long.
        let (bus, link) = join(&rig).await;
        rig.await_status("with it", Duration::from_secs(5), |status| status["nodes"][1]["state"] == "up");
        let jobs = || rig.events().iter().filter(|event| event["kind"] == "job_submitted").count();
        let before = jobs();
        submit_and_go(&peer, &long(Some("/rare")), Duration::from_millis(300)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let card = client(&rig).await.model(None).await.expect("left has it");
        let card = serde_json::to_string(&card).expect("JSON");
        link.cast(&Up::Model("/rare".into(), Ok(card))).expect("a connection");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(jobs(), before, "{:#?}", rig.events());
        drop(link);
        bus.stop();
    });
    assert!(rig.pictures("after", SMALL) == rig.serial(SMALL));
}

/// The attempt that a rank works for.
fn epoch(rig: &Rig, rank: usize) -> Stamp {
    let seen = std::cell::RefCell::new(String::new());
    rig.await_status("at work", Duration::from_secs(20), |status| {
        let rank = &status["ranks"][rank];
        *seen.borrow_mut() = rank["epoch"].as_str().unwrap_or_default().into();
        rank["state"] == "busy" && !seen.borrow().is_empty()
    });
    let seen = seen.into_inner();
    let (term, number) = seen.split_once('-').expect("two numbers");
    Stamp { term: term.parse().expect("a number"), number: number.parse().expect("a number") }
}

#[test]
fn a_rank_that_has_no_part_in_a_job_writes_nothing_into_its_report() {
    let _alone = alone();
    let rig = rig();
    let what = ["--prompt", "red apple", "--height", "128", "--width", "128"];
    let how = ["--num_inference_steps", "60", "--report", "report.json"];
    let drawing = [&what[..], &how].concat();
    run(async {
        let (bus, link) = join(&rig).await;
        let start = loop {
            let Some(Received::Cast(bytes)) = link.receive().await else { panic!("a cast") };
            if let Ok(Down::Spawn(0, start)) = wire::decode(&bytes) {
                break start;
            }
        };
        let job = rig.start("lied", &drawing);
        let epoch = epoch(&rig, 0);
        for number in 0..200 {
            let lie = RankSay::Failed(Trouble::Error(format!("lie {number}")));
            link.cast(&Up::Said(0, start, epoch, lie)).expect("a connection");
            link.cast(&Up::Model("demo".into(), Err("gone".into()))).expect("a connection");
        }
        finish(job, TIMEOUT).expect_success();
        drop(link);
        bus.stop();
    });
    let report = std::fs::read_to_string(rig.path("report.json")).expect("a report");
    assert!(!report.contains("lie "), "{report}");
    let events = rig.events();
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((of("rank_failed"), of("model_missing")), (0, 1), "{events:#?}");
}

/// What the head tells a node that concerns a model, within a few seconds.
async fn probed(link: &Link, model: &str) -> bool {
    let asked = async {
        while let Some(received) = link.receive().await {
            let Received::Cast(bytes) = received else { continue };
            if matches!(wire::decode(&bytes), Ok(Down::Probe(name)) if name == model) {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(Duration::from_secs(4), asked).await.unwrap_or(false)
}

/// Sends a signal to the agent of the third node.
fn signal(rig: &Rig, agent: &str, signal: &str) {
    let sent = std::process::Command::new("kill").args([signal, agent]).status();
    assert!(sent.is_ok_and(|status| status.success()), "{agent}: {}", rig.head_log());
}

#[test]
fn nodes_that_come_and_go_while_a_model_is_looked_for_are_counted() {
    let _alone = alone();
    let rig = rig_with("[[node]]\nname = \"still\"\nlocal = true\nranks = 2\ncpu_threads = 1\n", 3);
    let is = |state: &'static str| move |status: &serde_json::Value| status["nodes"][2]["state"] == state;
    rig.await_status("with the third", Duration::from_secs(20), is("up"));
    let agent = rig.status()["nodes"][2]["pid"].to_string();
    run(async {
        let asker = client(&rig).await;
        // It is in, and says nothing for now.
        signal(&rig, &agent, "-STOP");
        let answer = tokio::spawn(async move { asker.model(Some("/rare")).await });
        let (bus, link) = join(&rig).await;
        assert!(probed(&link, "/rare").await, "the one that comes is asked too");
        drop(link);
        bus.stop();
        rig.await_status("without the third", Duration::from_secs(15), is("down"));
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.expect("both have gone");
        let error = answer.expect("no panic").expect_err("no node has it").to_string();
        assert!(error.contains("no node has the model `/rare`"), "{error}");
    });
    signal(&rig, &agent, "-CONT");
    rig.await_status("with it again", Duration::from_secs(15), is("up"));
}

/// The GPUs of `evil` begin nothing; who wants its CPUs does not wait for those who want them.
#[test]
fn jobs_for_cpus_run_beside_those_that_wait_for_gpus() {
    let _alone = alone();
    let nodes = "[[node]]\nname = \"left\"\nlocal = true\nranks = 2\ncpu_threads = 1\n\
                 [[node]]\nname = \"evil\"\nlocal = true\nlaunch = \"manual\"\ngpus = [0, 1]\n\
                 [parallel]\nulysses_degree = 2\ndata_parallel_degree = 2\n";
    let rig = Rig::up(nodes, None, false);
    let all = |status: &serde_json::Value, states: [&str; 2]| {
        let ranks = status["ranks"].as_array().expect("a list");
        ranks.iter().take(2).all(|rank| states.contains(&rank["state"].as_str().unwrap_or_default()))
    };
    rig.await_status("left is up", Duration::from_secs(30), |status| all(status, ["idle"; 2]));
    run(async {
        let (bus, _link) = join(&rig).await;
        rig.await_status("both", Duration::from_secs(5), |status| status["nodes"][1]["state"] == "up");
        let on = |device| [SMALL, &["--device", device]].concat();
        let waits = rig.start("waits", &on("cuda"));
        rig.await_status("one waits", Duration::from_secs(20), |status| status["waiting"] == 1);
        assert!(rig.pictures("cpu", &on("cpu")) == rig.serial(SMALL));
        let status = rig.status();
        assert!(status["waiting"] == 1 && all(&status, ["idle"; 2]), "{status:#}");
        for signal in ["-TERM", "-KILL"] {
            let _ = std::process::Command::new("kill").args([signal, &waits.id().to_string()]).status();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        finish(waits, TIMEOUT);
        bus.stop();
    });
}
