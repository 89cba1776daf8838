use super::*;

const NODE: NodeId = NodeId(2);
const RANK: RankId = RankId { node: NODE, slot: 0 };

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn facts(running: Vec<(u16, Stamp)>) -> Facts {
    Facts {
        name: "n".into(),
        incarnation: 1,
        kind: Kind::Cuda,
        slots: 1,
        memory_bytes: 1 << 30,
        flops: 0,
        models: vec![ModelHash(1)],
        running,
    }
}

fn up(running: Vec<(u16, Stamp)>) -> (Registry, Vec<Action>) {
    let mut registry = Registry::new(1, ProcessTimes::default());
    let actions = registry.handle(Event::Up(NODE, facts(running), false), s(0));
    (registry, actions)
}

#[test]
fn three_deaths_in_five_minutes_make_a_device_bad() {
    for (times, is_bad) in [([0, 10, 290], true), ([0, 10, 301], false)] {
        let (mut registry, _) = up(Vec::new());
        let mut last = Vec::new();
        for at in times {
            let start = registry.start(RANK).unwrap();
            registry.handle(Event::Spawned(RANK, start), s(at));
            assert_eq!(registry.free().count(Kind::Cuda), 1);
            last = registry.handle(Event::Exited(RANK, start, Vec::new()), s(at));
            assert_eq!(registry.handle(Event::Exited(RANK, start, Vec::new()), s(at)), [], "it died once");
        }
        assert_eq!(last == [Action::Bad(RANK)], is_bad);
        assert_eq!(registry.capacity(Kind::Cuda), usize::from(!is_bad));
    }
}

#[test]
fn a_device_that_fails_under_a_live_process_counts_too() {
    let (mut registry, _) = up(Vec::new());
    for at in 0..2 {
        let start = registry.start(RANK).unwrap();
        assert_eq!(registry.handle(Event::Replace(RANK), s(at)), [Action::Kill(RANK, start)]);
        assert_eq!(registry.handle(Event::Replace(RANK), s(at)), [], "it is on its way");
        registry.handle(Event::Exited(RANK, start, Vec::new()), s(at));
    }
    assert_eq!(registry.handle(Event::Replace(RANK), s(3)).last(), Some(&Action::Bad(RANK)));
    assert_eq!((registry.process(RANK), registry.capacity(Kind::Cuda)), (Process::Bad, 0));
}

#[test]
fn a_process_that_runs_already_is_stopped_before_it_is_used_and_killed_if_it_does_not_stop() {
    let start = Stamp { term: 0, number: 99 };
    let (mut registry, actions) = up(vec![(0, start)]);
    let fence = Stamp { term: 1, number: 1 };
    assert_eq!(actions, [Action::Abort(RANK, start, fence), Action::Grown]);
    assert_eq!(registry.handle(Event::Tick, s(1)), [Action::Abort(RANK, start, fence)]);
    assert_eq!(registry.handle(Event::Stopped(RANK, start, start), s(1)), [], "that was another order");
    let mut other = registry.clone();
    assert_eq!(other.handle(Event::Stopped(RANK, start, fence), s(1)), [Action::Ready(RANK)]);
    assert_eq!(registry.handle(Event::Tick, s(2)), [Action::Kill(RANK, start)]);
    assert!(matches!(registry.handle(Event::Exited(RANK, start, Vec::new()), s(3))[..], [Action::Spawn(..)]));
}

#[test]
fn jobs_hear_of_lost_ranks_and_a_draining_node_takes_nothing_new() {
    let (mut registry, _) = up(Vec::new());
    let start = registry.start(RANK).unwrap();
    registry.handle(Event::Spawned(RANK, start), s(1));
    registry.handle(Event::Take(RANK, JobId(4)), s(1));
    assert_eq!(registry.handle(Event::Drain(NODE, true), s(2)), []);
    assert_eq!(registry.capacity(Kind::Cuda), 0);
    let freed = registry.handle(Event::Free(RANK), s(3));
    assert_eq!(freed, [Action::Ready(RANK), Action::Drained(NODE)]);
    assert_eq!(registry.free().count(Kind::Cuda), 0);
    assert_eq!(registry.handle(Event::Drain(NODE, false), s(4)), [Action::Grown]);
    assert_eq!(registry.free().count(Kind::Cuda), 1);
    registry.handle(Event::Take(RANK, JobId(5)), s(5));
    assert_eq!(registry.lacks(ModelHash(2)), Some(NODE));
    let lost = Action::Lost(RANK, JobId(5), Cause::NodeLost(RANK));
    assert_eq!(registry.handle(Event::Down(NODE), s(6)), [lost]);
    assert_eq!((registry.lacks(ModelHash(2)), registry.start(RANK)), (None, None));
}

#[test]
fn a_process_with_long_steps_has_longer_to_stop() {
    let (mut registry, _) = up(Vec::new());
    let start = registry.start(RANK).unwrap();
    registry.handle(Event::Spawned(RANK, start), s(0));
    registry.handle(Event::Take(RANK, JobId(4)), s(0));
    let told = registry.handle(Event::Stop(RANK, s(5)), s(0));
    assert!(matches!(told[..], [Action::Abort(..)]));
    assert_eq!(registry.handle(Event::Tick, s(4)), told, "it is told again");
    assert_eq!(registry.handle(Event::Tick, s(5)), [Action::Kill(RANK, start)]);
}
