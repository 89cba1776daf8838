use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const TTL: Duration = Duration::from_secs(5);

fn granted(seq: u64) -> NodeEvent {
    NodeEvent::Granted { term: 1, seq, ttl: TTL }
}

#[test]
fn a_lease_counts_from_the_question_and_ends_with_a_fence_then_a_kill() {
    let mut keeper = Keeper::new(LeaseTimes::default(), ms(0));
    assert!(!keeper.is_held(ms(0)));
    assert_eq!(keeper.handle(NodeEvent::Tick, ms(0))[0], NodeAction::Renew { seq: 1 });
    keeper.handle(granted(1), ms(900));
    assert!(keeper.is_held(ms(3999)) && !keeper.is_held(ms(4000)));
    let ended = keeper.handle(NodeEvent::Tick, ms(4000));
    assert_eq!(ended[0], NodeAction::Fence);
    assert_eq!(*ended.last().unwrap(), NodeAction::SetTimer(ms(4300)));
    assert!(keeper.handle(NodeEvent::Tick, ms(4300)).contains(&NodeAction::Kill));
    assert!(keeper.handle(NodeEvent::Tick, ms(64_000)).contains(&NodeAction::Exit));
    assert_eq!(keeper.handle(granted(2), ms(64_001)), []);
}

#[test]
fn a_new_head_brings_its_times_along() {
    let mut keeper = Keeper::new(LeaseTimes::default(), ms(0));
    keeper.handle(NodeEvent::Tick, ms(0));
    keeper.handle(granted(1), ms(1));
    let (renew, margin, alone_max) = (ms(200), ms(200), ms(3000));
    let times = LeaseTimes { ttl: ms(1000), renew, margin, alone_max, ..LeaseTimes::default() };
    keeper.set_times(times, ms(500));
    assert!(keeper.is_held(ms(3999)), "what was granted is granted");
    assert_eq!(
        keeper.handle(NodeEvent::Head { term: 2 }, ms(500))[..2],
        [NodeAction::Fence, NodeAction::Renew { seq: 2 }]
    );
    keeper.handle(NodeEvent::Tick, ms(800));
    keeper.handle(NodeEvent::Granted { term: 2, seq: 3, ttl: times.ttl }, ms(801));
    assert!(keeper.is_held(ms(1599)) && !keeper.is_held(ms(1600)));
    assert_eq!(keeper.handle(NodeEvent::Tick, ms(1600))[0], NodeAction::Fence);
    // It is alone for longer than the next head allows: since that is there, it is not.
    keeper.set_times(times, ms(60_000));
    assert!(!keeper.handle(NodeEvent::Head { term: 3 }, ms(60_000)).contains(&NodeAction::Exit));
    assert!(keeper.handle(NodeEvent::Tick, ms(63_000)).contains(&NodeAction::Exit));
}

#[test]
fn answers_of_an_older_head_and_to_questions_long_ago_do_not_count() {
    let mut keeper = Keeper::new(LeaseTimes::default(), ms(0));
    keeper.handle(NodeEvent::Tick, ms(0));
    keeper.handle(granted(7), ms(1));
    assert!(!keeper.is_held(ms(1)), "nobody asked");
    keeper.handle(granted(1), ms(5000));
    assert!(!keeper.is_held(ms(5000)), "it would be over already");
    keeper.handle(NodeEvent::Granted { term: 2, seq: 2, ttl: TTL }, ms(5001));
    assert!(keeper.is_held(ms(5001)));
    keeper.handle(NodeEvent::Tick, ms(6000));
    keeper.handle(granted(3), ms(6001));
    assert!(!keeper.is_held(ms(9500)), "an older head cannot prolong it");
}

#[test]
fn a_new_head_finds_ranks_that_have_stopped() {
    let mut keeper = Keeper::new(LeaseTimes::default(), ms(0));
    keeper.handle(NodeEvent::Tick, ms(0));
    keeper.handle(granted(1), ms(1));
    keeper.handle(NodeEvent::Tick, ms(1000));
    let actions = keeper.handle(NodeEvent::Granted { term: 2, seq: 2, ttl: TTL }, ms(1001));
    assert_eq!(actions[0], NodeAction::Fence);
    assert!(!keeper.is_held(ms(1002)));
}

#[test]
fn a_restarted_node_takes_the_place_of_its_ghost() {
    let node = NodeId(3);
    let mut leases = Leases::new(TTL);
    let joined = |incarnation| HeadEvent::Joined { node, incarnation };
    let admitted = |is_restart| vec![HeadAction::Admit { node, is_restart }];
    assert_eq!(leases.handle(joined(5), ms(0)), admitted(false));
    assert_eq!(leases.handle(joined(6), ms(1)), admitted(true));
    let refused = vec![HeadAction::Refuse { node, incarnation: 5, have: Some(6) }];
    assert_eq!(leases.handle(joined(5), ms(2)), refused);
    assert_eq!(leases.handle(HeadEvent::Renew { node, incarnation: 5, seq: 1 }, ms(3)), refused);
    let renew = HeadEvent::Renew { node, incarnation: 6, seq: 9 };
    assert_eq!(leases.handle(renew, ms(1000)), [HeadAction::Grant { node, seq: 9 }]);
    assert_eq!(leases.next(), Some(ms(6000)));
    assert_eq!(leases.handle(HeadEvent::Tick, ms(5999)), []);
    assert_eq!(leases.handle(HeadEvent::Tick, ms(6000)), [HeadAction::Expired(node)]);
    assert!(
        matches!(leases.handle(renew, ms(6001))[..], [HeadAction::Refuse { .. }]),
        "it has to say hello again"
    );
    assert_eq!(leases.handle(joined(6), ms(6002)), admitted(false));
}

#[test]
fn what_an_earlier_head_has_started_stops_when_a_new_one_takes_the_node_and_not_later() {
    let mut keeper = Keeper::new(LeaseTimes::default(), ms(0));
    keeper.handle(NodeEvent::Head { term: 1 }, ms(0));
    keeper.handle(granted(1), ms(1));
    assert!(keeper.is_held(ms(1)));
    assert_eq!(
        keeper.handle(NodeEvent::Head { term: 1 }, ms(2)).first(),
        Some(&NodeAction::SetTimer(ms(1000)))
    );
    let taken = keeper.handle(NodeEvent::Head { term: 2 }, ms(500));
    assert_eq!(taken[..2], [NodeAction::Fence, NodeAction::Renew { seq: 2 }]);
    assert!(keeper.handle(NodeEvent::Tick, ms(801)).contains(&NodeAction::Kill));
    // Its first grant, for a question of then, stops nothing.
    keeper.handle(NodeEvent::Tick, ms(1500));
    let first = keeper.handle(NodeEvent::Granted { term: 2, seq: 3, ttl: TTL }, ms(1501));
    assert!(keeper.is_held(ms(1501)) && !first.contains(&NodeAction::Fence), "{first:?}");
}
