use super::*;
use crate::logic::cluster::checkpoint::Reference;
use crate::logic::cluster::epoch::{Say, Trouble};
use crate::logic::cluster::{JobId, NodeId};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn rank(slot: u16) -> RankId {
    RankId { node: NodeId(0), slot }
}

fn stamp(number: u64) -> Stamp {
    Stamp { term: 1, number }
}

fn job() -> Job {
    let spec = JobSpec {
        client: ClientId(0),
        priority: 0,
        model: ModelHash(1),
        kind: None,
        steps: 20,
        ranks_min: 1,
        ranks_max: 2,
        work: None,
        ask: None,
    };
    Job::new(spec, EpochTimes::default(), Duration::from_secs(600), ms(0))
}

fn replan(_: &Loss) -> Prices {
    Prices::default()
}

fn team() -> Team {
    Team { job: JobId(1), members: vec![rank(0), rank(1)], layout: Layout::SERIAL, steps: 9 }
}

/// Has both ranks compute as attempt `number`.
fn run(job: &mut Job, number: u64) -> Vec<Action> {
    let mut actions = job.handle(Event::Place(stamp(number), team(), 1000), ms(0), &replan);
    for say in [Say::Prepared, Say::Grouped] {
        actions.extend(said(job, number, 0, say.clone()));
        actions.extend(said(job, number, 1, say));
    }
    actions
}

fn said(job: &mut Job, number: u64, slot: u16, say: Say) -> Vec<Action> {
    job.handle(Event::Epoch(stamp(number), epoch::Event::Said(rank(slot), say)), ms(1), &replan)
}

fn keep(job: &mut Job, number: u64, step: u32) {
    for slot in 0..2 {
        said(job, number, slot, Say::Checkpoint(step, Reference(u64::from(step))));
    }
}

/// Rank 1 dies; rank 0 stops.
fn lose(job: &mut Job, number: u64, prices: &dyn Fn(&Loss) -> Prices) -> Vec<Action> {
    let gone = epoch::Event::Gone(rank(1), Cause::Exited(rank(1), vec!["killed".into()]));
    job.handle(Event::Epoch(stamp(number), gone), ms(2), prices);
    let stopped = epoch::Event::Said(rank(0), Say::Stopped);
    job.handle(Event::Epoch(stamp(number), stopped), ms(3), prices)
}

#[test]
fn a_job_resumes_from_its_newest_complete_latents() {
    let mut job = job();
    run(&mut job, 1);
    keep(&mut job, 1, 14);
    keep(&mut job, 1, 15);
    said(&mut job, 1, 0, Say::Checkpoint(16, Reference(16)));
    let over = lose(&mut job, 1, &replan);
    assert_eq!(over.last(), Some(&Action::Requeue));
    let again = run(&mut job, 2);
    assert_eq!(again[0], Action::Resumed(stamp(2), 15));
    let runs =
        again.iter().filter(|action| matches!(action, Action::Send(_, _, Order::Run { from_step: 15, .. })));
    assert_eq!(runs.count(), 2);
    said(&mut job, 1, 0, Say::Done);
    said(&mut job, 1, 1, Say::Done);
    assert!(job.epoch().is_some(), "the first attempt is over");
    assert_eq!(said(&mut job, 2, 0, Say::Done), []);
    assert_eq!(said(&mut job, 2, 1, Say::Done).last(), Some(&Action::End(End::Done)));
    assert_eq!(job.attempts().len(), 2);
}

#[test]
fn three_attempts_without_latents_are_enough() {
    let mut job = job();
    for number in 1..=3 {
        run(&mut job, number);
        keep(&mut job, number, if number == 1 { 4 } else { 0 });
        assert_eq!(lose(&mut job, number, &replan).last(), Some(&Action::Requeue), "attempt {number}");
    }
    run(&mut job, 4);
    let cause = Cause::Exited(rank(1), vec!["killed".into()]);
    let failure = Failure::NoProgress { cause, step: 4, epochs: 4 };
    assert_eq!(lose(&mut job, 4, &replan).last(), Some(&Action::End(End::Failed(failure))));
}

#[test]
fn ranks_are_started_anew_only_if_that_is_sooner() {
    let price = |respawn, replan| {
        let (respawn, replan) = (Some(ms(respawn)), Some(ms(replan)));
        move |_: &Loss| Prices { respawn, respawn_wait: ms(500), replan }
    };
    let mut waits = job();
    run(&mut waits, 1);
    assert_eq!(
        lose(&mut waits, 1, &price(900, 1000)),
        [Action::Release(rank(1), State::Gone), Action::Await(rank(1))]
    );
    assert_eq!(waits.next(), Some(ms(1003)));
    assert!(!waits.handle(Event::Back(stamp(2), rank(1)), ms(600), &replan).is_empty());
    assert_eq!(waits.epoch().map(|epoch| epoch.stamp), Some(stamp(2)));
    let mut goes_on = job();
    run(&mut goes_on, 1);
    assert_eq!(lose(&mut goes_on, 1, &price(1000, 1000)).last(), Some(&Action::Requeue));
}

#[test]
fn too_little_memory_means_less_per_rank_and_in_the_end_failure() {
    let mut job = job();
    run(&mut job, 1);
    said(&mut job, 1, 0, Say::Failed(Trouble::Oom { need: 2000, free: None }));
    assert_eq!(said(&mut job, 1, 1, Say::Stopped).last(), Some(&Action::Requeue));
    assert_eq!(job.memory_bytes, Some(900));
    let failed = End::Failed(Failure::Memory { rank: rank(0), need: 2000, free: None });
    assert_eq!(job.handle(Event::NoLayout, ms(9), &replan), [Action::End(failed)]);
    // A device that tells what is free is believed.
    let mut told = self::job();
    run(&mut told, 1);
    said(&mut told, 1, 0, Say::Failed(Trouble::Oom { need: 2000, free: Some(700) }));
    said(&mut told, 1, 1, Say::Stopped);
    assert_eq!(told.memory_bytes, Some(700));
}

#[test]
fn a_cancelled_job_ends_when_its_ranks_have_stopped() {
    let mut job = job();
    run(&mut job, 1);
    let aborts = job.handle(Event::Cancel, ms(5), &replan);
    assert_eq!(aborts.len(), 2);
    said(&mut job, 1, 0, Say::Stopped);
    assert_eq!(said(&mut job, 1, 1, Say::Stopped).last(), Some(&Action::End(End::Cancelled)));
    assert_eq!(job.handle(Event::Cancel, ms(6), &replan), []);
}

/// A job of one attempt whose rank 1 is behind when nothing comes any more; `stops` answers the abort. What follows.
fn hang(stops: Option<u16>) -> Vec<Action> {
    let times = EpochTimes { barren_max: 1, ..EpochTimes::default() };
    let mut job = Job::new(job().spec, times, Duration::from_secs(600), ms(0));
    run(&mut job, 1);
    said(&mut job, 1, 0, Say::Progress(1));
    job.handle(Event::Tick, Duration::from_secs(121), &replan);
    if let Some(slot) = stops {
        said(&mut job, 1, slot, Say::Stopped);
    }
    job.handle(Event::Tick, Duration::from_secs(122), &replan)
}

#[test]
fn a_hang_is_the_fault_of_who_is_silent_and_counts_only_if_that_is_one() {
    let blamed = |actions: &[Action]| match actions.last() {
        Some(Action::End(End::Failed(Failure::NoProgress { cause, .. }))) => cause.rank(),
        other => panic!("{other:?}"),
    };
    let replaced = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Replace(rank) => Some(*rank),
            _ => None,
        })
    };
    let both = hang(None);
    assert_eq!((blamed(&both), replaced(&both)), (Some(rank(1)), None), "the one that was behind");
    for (stops, silent) in [(0, 1), (1, 0)] {
        let one = hang(Some(stops));
        assert_eq!((blamed(&one), replaced(&one)), (Some(rank(silent)), Some(rank(silent))));
    }
}
