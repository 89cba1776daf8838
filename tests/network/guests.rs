//! Peers that are let in and then do not do what they should: each is dealt with, and nobody else is the worse for it.

use crate::raw;
use crate::rig::{Rig, SMALL, alone, run};
use dg_net::bus::{Bus, Link};
use dg_runtime::fleet::client::{CLIENT, HeadClient, Options};
use dg_runtime::fleet::protocol::Up;
use std::time::{Duration, Instant};

/// The ranks of `left` work; `evil` has a place in the file, and what sits there is the test.
fn rig() -> Rig {
    let rig = Rig::up(
        "[[node]]\nname = \"left\"\nlocal = true\nranks = 2\ncpu_threads = 1\n\
         [[node]]\nname = \"evil\"\nlocal = true\nlaunch = \"manual\"\nranks = 2\ncpu_threads = 1\n\
         [parallel]\nulysses_degree = 2\n",
        None,
        false,
    );
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
