use super::*;
use crate::logic::cluster::NodeId;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn rank(slot: u16) -> RankId {
    RankId { node: NodeId(0), slot }
}

const EPOCH: Stamp = Stamp { term: 1, number: 7 };

/// Two ranks, told to get ready.
fn begun() -> Epoch {
    let team = Team { job: JobId(1), members: vec![rank(0), rank(1)], layout: Layout::SERIAL, steps: 9 };
    let (epoch, sends) = Epoch::begin(EPOCH, team, None, Pace::default(), EpochTimes::default(), ms(0));
    assert!(matches!(sends[..], [Action::Send(_, Order::Prepare(_)), Action::Send(_, Order::Prepare(_))]));
    epoch
}

fn said(epoch: &mut Epoch, slot: u16, say: Say, now: u64) -> Vec<Action> {
    epoch.handle(EPOCH, Event::Said(rank(slot), say), ms(now))
}

/// Two ranks that compute since 20 ms.
fn running() -> Epoch {
    let mut epoch = begun();
    for (say, now) in [(Say::Prepared, 10), (Say::Grouped, 20)] {
        assert_eq!(said(&mut epoch, 0, say.clone(), now), []);
        assert_eq!(said(&mut epoch, 0, say.clone(), now), [], "once is enough");
        assert_eq!(said(&mut epoch, 1, say, now).len(), 2);
    }
    assert_eq!(epoch.phase, Phase::Running);
    epoch
}

#[test]
fn all_ranks_go_from_phase_to_phase_together() {
    let mut epoch = running();
    assert_eq!(
        said(&mut epoch, 0, Say::Checkpoint(1, Reference(5)), 30),
        [Action::Keep(rank(0), 1, Reference(5))]
    );
    assert_eq!(said(&mut epoch, 1, Say::Done, 40), []);
    assert_eq!(said(&mut epoch, 0, Say::Done, 50), [Action::Done]);
}

#[test]
fn what_belongs_to_another_attempt_does_nothing() {
    let mut epoch = running();
    for number in [6, 8] {
        let other = Stamp { number, ..EPOCH };
        for say in
            [Say::Done, Say::Progress(9), Say::Checkpoint(9, Reference(0)), Say::Failed(Trouble::DeviceLost)]
        {
            assert_eq!(epoch.handle(other, Event::Said(rank(0), say), ms(30)), []);
        }
    }
    assert_eq!((epoch.phase, epoch.step), (Phase::Running, 0));
}

#[test]
fn orders_are_repeated_to_those_that_do_not_answer() {
    let mut epoch = begun();
    said(&mut epoch, 0, Say::Prepared, 10);
    assert_eq!(epoch.next(), ms(500));
    let again = epoch.handle(EPOCH, Event::Tick, ms(500));
    assert!(matches!(again[..], [Action::Send(to, Order::Prepare(_))] if to == rank(1)));
}

#[test]
fn the_slowest_rank_hangs_after_three_median_steps_but_not_before_ten_seconds() {
    let mut epoch = running();
    for step in 1..=3 {
        let now = 20 + 5000 * u64::from(step);
        said(&mut epoch, 0, Say::Progress(step), now);
        said(&mut epoch, 1, Say::Progress(step), now);
    }
    said(&mut epoch, 0, Say::Progress(4), 19_000);
    assert_eq!((epoch.step, epoch.pace.median()), (3, Some(ms(5000))));
    epoch.handle(EPOCH, Event::Tick, ms(15_020 + 14_999));
    assert_eq!(epoch.phase, Phase::Running);
    let aborts = epoch.handle(EPOCH, Event::Tick, ms(15_020 + 15_000));
    assert_eq!(aborts, [0, 1].map(|slot| Action::Send(rank(slot), Order::Abort)));
    let again = epoch.handle(EPOCH, Event::Tick, ms(15_020 + 16_249));
    assert_eq!(again, aborts, "a block of such steps takes longer than the shortest grace");
    let over = epoch.handle(EPOCH, Event::Tick, ms(15_020 + 16_250));
    assert_eq!(over, [Action::Over(Cause::Hung(rank(1)))], "nobody answers within the grace");
}

#[test]
fn layers_that_are_done_are_a_sign_of_life_and_no_step() {
    let mut epoch = running();
    // Text and a first step of five minutes.
    for now in (0..300).map(|second| 1000 * second + 20) {
        said(&mut epoch, 0, Say::Alive, now);
        assert_eq!(epoch.handle(EPOCH, Event::Tick, ms(now + 999)), epoch.send(ms(now + 999)));
    }
    assert_eq!((epoch.phase, epoch.step), (Phase::Running, 0));
    for step in 1..=2 {
        said(&mut epoch, 0, Say::Progress(step), 300_020 + u64::from(step));
        said(&mut epoch, 1, Say::Progress(step), 300_020 + u64::from(step));
    }
    assert_eq!(epoch.pace.median(), Some(ms(300_001)), "the first step counts whole");
    // Between steps the others stand still soon; then the time runs.
    let mut epoch = running();
    said(&mut epoch, 0, Say::Alive, 100_000);
    epoch.handle(EPOCH, Event::Tick, ms(219_999));
    assert_eq!(epoch.phase, Phase::Running);
    epoch.handle(EPOCH, Event::Tick, ms(220_000));
    assert_eq!(epoch.phase, Phase::Aborting);
}

#[test]
fn pictures_may_take_longer_than_steps() {
    let mut epoch = running();
    for step in 1..=9 {
        for slot in 0..2 {
            said(&mut epoch, slot, Say::Progress(step), 20 + 100 * u64::from(step));
        }
    }
    said(&mut epoch, 1, Say::Done, 930);
    epoch.handle(EPOCH, Event::Tick, ms(920 + 119_999));
    assert_eq!(epoch.phase, Phase::Running);
    epoch.handle(EPOCH, Event::Tick, ms(920 + 120_000));
    assert_eq!(epoch.phase, Phase::Aborting);
}

#[test]
fn the_cause_that_explains_most_is_told_once_all_have_stopped() {
    let mut epoch = running();
    let aborts = said(&mut epoch, 0, Say::Failed(Trouble::PeerLost), 100);
    assert_eq!(aborts, [Action::Send(rank(1), Order::Abort)]);
    let exited = Cause::Exited(rank(1), vec!["killed".into()]);
    let over = epoch.handle(EPOCH, Event::Gone(rank(1), exited.clone()), ms(101));
    assert_eq!(over, [Action::Over(exited)]);
    assert_eq!([0, 1].map(|slot| epoch.state(rank(slot))), [Some(State::Stopped), Some(State::Gone)]);
}
