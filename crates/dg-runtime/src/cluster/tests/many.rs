//! Clusters of many ranks.

use super::*;
use crate::{JobError, RankSpan, RankState, job_plan};
use dg_comm::{Block, BlockShape, Call, Class, Communicator, EventKind, Tag};
use dg_core::ExitCode;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;
use tokio::time::timeout;

/// Two replicas of four ranks.
const EIGHT: Layout = Layout { dp: 2, ulysses: 4, ..Layout::SERIAL };
/// One replica of two ranks.
const TWO: Layout = Layout { ulysses: 2, ..Layout::SERIAL };
/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(60);
/// Five times what a job may take to end on all ranks.
const SOON: Duration = Duration::from_secs(5);

/// Which rank has begun which prompt, and how often each rank was loaded.
#[derive(Default)]
struct Seen {
    begun: Mutex<Vec<(usize, String)>>,
    loads: Mutex<Vec<usize>>,
}

impl Seen {
    fn has(&self, rank: usize, prompt: &str) -> bool {
        self.begun.lock().unwrap().iter().any(|(r, p)| *r == rank && p == prompt)
    }

    /// Waits until it has, on the rank or in the test.
    fn wait_for(&self, rank: usize, prompt: &str) {
        let begin = Instant::now();
        while !self.has(rank, prompt) {
            assert!(begin.elapsed() < LONG, "rank {rank} has not begun `{prompt}`");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    async fn begun(self: &Arc<Self>, rank: usize, prompt: &'static str) {
        let seen = self.clone();
        tokio::task::spawn_blocking(move || seen.wait_for(rank, prompt)).await.unwrap();
    }
}

/// A rank that sends its number to the next one. Prompts are told to it in words: what to do, and who and what that
/// concerns.
struct Rank {
    rank: usize,
    seen: Arc<Seen>,
}

impl Engine for Rank {
    fn generate(
        &mut self,
        batch: &[GenerateRequest],
        job: &RankJob,
        watch: &mut dyn Watch,
    ) -> Result<Option<Vec<Picture>>, RunError> {
        let prompt = batch[0].prompt.as_str();
        let (local, decoder) = (job.comm.rank(), job.plan.decoder_rank(0) as usize);
        assert_eq!((local, job.plan.layout.dp), (self.rank % job.comm.size(), 1));
        assert_eq!(
            std::thread::current().name().map(|n| n.starts_with(&format!("dg-rank{}-", self.rank))),
            Some(true)
        );
        self.seen.begun.lock().unwrap().push((self.rank, prompt.to_owned()));
        let mut words = prompt.split(' ');
        let what = words.next().unwrap();
        let concerned = words.next().and_then(|word| word.parse().ok());
        let mine = concerned == Some(self.rank);
        match what {
            "panic" if mine => panic!("out of paint"),
            "error" if mine => return Err(NotFinite { image: 0, steps: 4 }),
            // so that the next rank waits for it beyond its patience
            "sleep" if mine => std::thread::sleep(Duration::from_millis(300)),
            "dawdle" => dawdle(watch)?,
            // two jobs that are worked on at a time on two replicas
            "meet" => self.seen.wait_for(concerned.unwrap(), words.next().unwrap()),
            _ => {}
        }
        let patience = if what == "sleep" && !mine { Duration::from_millis(50) } else { job.patience };
        ring(&*job.comm, job.request, patience, batch.len())?;
        if what == "fail" {
            return Err(NotFinite { image: 0, steps: 4 });
        }
        if local != decoder {
            return Ok(None);
        }
        for step in 1..=2 {
            watch.event(StepEvent::Step { images: vec![0], step, steps: 2, seconds: 0.0 });
        }
        match what {
            "decode" => self.seen.wait_for(concerned.unwrap(), words.next().unwrap()),
            "decode-and-panic" => {
                self.seen.wait_for(concerned.unwrap(), words.next().unwrap());
                panic!("out of paper");
            }
            "decode-until-cancelled" => dawdle(watch)?,
            _ => {}
        }
        Ok(Some(pictures(batch)))
    }

    fn mapped_bytes(&self) -> u64 {
        100 + self.rank as u64
    }
}

/// `images` times rank + 1 values to the next rank.
fn ring(comm: &dyn Communicator, request: u64, patience: Duration, images: usize) -> Result<(), RunError> {
    let (rank, size) = (comm.rank(), comm.size());
    let before = (rank + size - 1) % size;
    let call = Call::within(patience, Class::RingKv, Tag::new(request));
    comm.send((rank + 1) % size, &call, Block::from_f32(vec![0.0; images * (rank + 1)]))?;
    comm.recv(before, &call, BlockShape::f32(images * (before + 1)))?;
    Ok(())
}

async fn start(layout: Layout) -> (Cluster, Arc<Seen>) {
    start_with(Parallel { ask: Ask::layout(layout), patience: LONG, trace: true, ..Parallel::default() })
        .await
}

async fn start_with(parallel: Parallel) -> (Cluster, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let shared = seen.clone();
    let load = move |rank| -> Result<Box<dyn Engine>, StartError> {
        shared.loads.lock().unwrap().push(rank);
        Ok(Box::new(Rank { rank, seen: shared.clone() }))
    };
    let options = EngineOptions { parallel, ..EngineOptions::default() };
    let cluster = Cluster::with_engine(Arc::new(load), known::flux_schnell(), options).await.unwrap();
    (cluster, seen)
}

/// The seeds of the job's pictures, or why there are none; but soon.
async fn end(job: Job) -> Result<Vec<u64>, JobError> {
    let pictures = timeout(SOON, job.finish()).await.expect("jobs end soon")?;
    Ok(pictures.iter().map(|p| p.seed.0).collect())
}

#[tokio::test]
async fn jobs_are_spread_over_replicas_and_pictures_come_to_their_job() {
    let (cluster, seen) = start(EIGHT).await;
    assert_eq!(cluster.replicas(), 2);
    let mut loads = seen.loads.lock().unwrap().clone();
    loads.sort_unstable();
    assert_eq!(loads, (0..8).collect::<Vec<_>>());
    // neither ends before the other has begun, on the other replica
    let (a, b) = (request("meet 4 meet-b", 1), request("meet-b", 2));
    let (a, b) = (cluster.submit(vec![a]), cluster.submit(vec![b]));
    assert_eq!((end(a).await, end(b).await), (Ok(vec![1]), Ok(vec![2])));
    let job = |i: u64| cluster.submit(vec![request("a", 2 * i), request("b", 2 * i + 1)]);
    let jobs: Vec<_> = (10..30).map(job).collect();
    for (i, job) in (10..30).zip(jobs) {
        assert_eq!(end(job).await, Ok(vec![2 * i, 2 * i + 1]));
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_panic_costs_one_job_of_one_replica_and_one_worker() {
    let (cluster, seen) = start(EIGHT).await;
    let other = cluster.submit(vec![request("dawdle", 0)]);
    seen.begun(3, "dawdle").await;
    let begin = Instant::now();
    let bad = cluster.submit(vec![request("panic 6", 1)]);
    let next = cluster.submit(vec![request("a", 2)]);
    let error = end(bad).await.unwrap_err();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!(error, JobError::Panicked("rank 6 (replica 1, ulysses 2): out of paint".into()));
    assert_eq!(end(next).await, Ok(vec![2]));
    assert!((4..8).all(|rank| seen.has(rank, "a")), "the other replica has work");
    assert_eq!(seen.loads.lock().unwrap()[8..], [6]);
    other.canceller().cancel();
    assert_eq!(end(other).await, Err(JobError::Cancelled));
}

/// Ranks that die now and then, here and there, while all replicas have work.
#[tokio::test]
async fn only_jobs_that_panic_are_lost() {
    let (cluster, seen) = start(EIGHT).await;
    let jobs: Vec<_> = (0..100u64)
        .map(|i| {
            let prompt = if i % 5 == 4 { format!("panic {}", i * i * 7 / 5 % 8) } else { "a".into() };
            (i, cluster.submit(vec![request(&prompt, i)]), prompt)
        })
        .collect();
    let mut panics = 0;
    for (i, job, prompt) in jobs {
        match end(job).await {
            Err(JobError::Panicked(message)) => {
                let rank = prompt.strip_prefix("panic ").expect("only those panic");
                assert!(message.starts_with(&format!("rank {rank} (")), "{message}");
                panics += 1;
            }
            other => assert_eq!(other, Ok(vec![i])),
        }
    }
    assert!(panics > 3, "{panics}");
    // the worker of the last one may not be there yet
    let replaced = seen.loads.lock().unwrap().len() - 8;
    assert!((panics - 2..=panics).contains(&replaced), "{replaced} workers for {panics} panics");
}

#[tokio::test]
async fn an_error_names_its_rank_and_not_those_that_it_ends() {
    let (cluster, seen) = start(EIGHT).await;
    for rank in [0, 3] {
        let error = end(cluster.submit(vec![request(&format!("error {rank}"), 0)])).await.unwrap_err();
        let expected =
            format!("rank {rank} (replica 0, ulysses {rank}): the latents of image 0 are not finite");
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(error.hint().is_some() && error.exit() == ExitCode::Failed);
    }
    assert_eq!(end(cluster.submit(vec![request("a", 1)])).await, Ok(vec![1]));
    assert_eq!(seen.loads.lock().unwrap().len(), 8, "nobody was replaced");
}

#[tokio::test]
async fn a_missed_deadline_is_the_error_of_whom_it_kept_waiting() {
    let (cluster, _) = start(EIGHT).await;
    let error = end(cluster.submit(vec![request("sleep 2", 0)])).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("rank 3 (replica 0, ulysses 3): ") && text.contains("from rank 2: gave up"),
        "{text}"
    );
}

#[tokio::test]
async fn a_cancelled_job_ends_on_all_ranks_and_those_that_wait_too() {
    let (cluster, seen) = start(TWO).await;
    let running = cluster.submit(vec![request("dawdle", 0)]);
    seen.begun(1, "dawdle").await;
    running.canceller().cancel();
    assert_eq!(end(running).await, Err(JobError::Cancelled));
    // the second waits for rank 0, of which the first has hold
    let first = cluster.submit(vec![request("decode-until-cancelled", 1)]);
    let second = cluster.submit(vec![request("a", 2)]);
    let third = cluster.submit(vec![request("b", 3)]);
    seen.begun(1, "a").await;
    second.canceller().cancel();
    first.canceller().cancel();
    assert_eq!(end(first).await, Err(JobError::Cancelled));
    assert_eq!(end(second).await, Err(JobError::Cancelled));
    assert_eq!(end(third).await, Ok(vec![3]));
    assert!(!seen.has(0, "a"), "it was cancelled before");
}

#[tokio::test]
async fn one_rank_decodes_while_the_others_begin_the_next_job() {
    let (cluster, seen) = start(TWO).await;
    // does not end before rank 1 has begun the second
    let first = cluster.submit(vec![request("decode 1 b", 1)]);
    let second = cluster.submit(vec![request("b", 2)]);
    assert_eq!((end(first).await, end(second).await), (Ok(vec![1]), Ok(vec![2])));
    let order: Vec<_> = seen.begun.lock().unwrap().iter().map(|(rank, p)| (*rank, p.len())).collect();
    assert_eq!(order[2..], [(1, 1), (0, 1)]);
}

#[tokio::test]
async fn a_job_that_loses_a_rank_through_another_begins_again() {
    let (cluster, seen) = start(TWO).await;
    let first = cluster.submit(vec![request("decode-and-panic 1 b", 1)]);
    let second = cluster.submit(vec![request("b", 2)]);
    let third = cluster.submit(vec![request("c", 3)]);
    assert_eq!(end(first).await, Err(JobError::Panicked("rank 0 (ulysses 0): out of paper".into())));
    assert_eq!((end(second).await, end(third).await), (Ok(vec![2]), Ok(vec![3])));
    let begun = seen.begun.lock().unwrap().clone();
    let of =
        |rank: usize| -> Vec<_> { begun.iter().filter(|(r, _)| *r == rank).map(|(_, p)| p.len()).collect() };
    assert_eq!((of(0), of(1)), (vec![20, 1, 1], vec![20, 1, 1, 1]));
}

#[tokio::test]
async fn reports_have_what_was_sent_to_ranks_of_the_whole_cluster() {
    let (cluster, seen) = start(EIGHT).await;
    // one job of two pictures on each replica
    let (a, b) = ([request("meet 4 b", 0), request("", 1)], [request("b", 2), request("", 3)]);
    let (a, b) = (cluster.submit(a.to_vec()), cluster.submit(b.to_vec()));
    assert!(end(a).await.is_ok() && end(b).await.is_ok());
    // and one that does not run to its end: what it sent is not in the report
    let bad = cluster.submit(vec![request("fail", 0)]);
    assert!(end(bad).await.is_err());
    let options = EngineOptions {
        parallel: Parallel { ask: Ask::layout(EIGHT), ..Parallel::default() },
        ..EngineOptions::default()
    };
    let plan = job_plan(&known::flux_schnell(), &options, &[request("", 0), request("", 0)]).unwrap();
    let reports = cluster.rank_reports();
    assert_eq!(reports.len(), 8);
    for (rank, report) in (0u32..).zip(&reports) {
        let (replica, local) = (rank / 4, rank % 4);
        assert_eq!((report.rank, report.coords), (rank, [replica, 0, 0, 0, local]));
        assert_eq!((report.node.as_str(), report.pid), ("local", std::process::id()));
        assert_eq!(report.mapped_bytes, 100 + u64::from(rank));
        let bytes = u64::from(2 * 4 * (local + 1));
        let sent = &report.sent["ring_kv"];
        assert_eq!((report.sent.len(), sent.bytes, sent.messages), (1, bytes, 1), "rank {rank}");
        assert_eq!(sent.to, BTreeMap::from([(replica * 4 + (local + 1) % 4, bytes)]));
        assert_eq!(report.predicted, plan.sent(local, 2).predicted());
        assert!(report.compute_s >= 0.0 && report.wait_s < SOON.as_secs_f64());
    }
    // nobody of the first replica got on before the second replica had begun, and no fake computes
    assert!(reports.iter().any(|report| report.wait_s > 0.0));
    drop(seen);
}

#[tokio::test]
async fn a_trace_has_messages_and_jobs_of_all_ranks_on_one_clock() {
    let (cluster, _) = start(EIGHT).await;
    let log = cluster.trace().unwrap();
    let loads = log.spans.iter().filter(|span| span.name == "load" && span.begin <= span.end);
    assert_eq!((loads.count(), log.events.len()), (8, 0));
    cluster.shutdown().await;
    let (cluster, _) = start(TWO).await;
    assert!(end(cluster.submit(vec![request("a", 0)])).await.is_ok());
    assert!(end(cluster.submit(vec![request("b", 0)])).await.is_ok());
    let log = cluster.trace().unwrap();
    for rank in 0..2u32 {
        for job in 0..2u64 {
            let named = |span: &&RankSpan| span.rank == rank && span.name == format!("job {job}");
            let span = log.spans.iter().find(named).unwrap();
            assert_eq!(span.job, job);
            let mine = log.events.iter().filter(|e| e.rank == rank as usize);
            let within: Vec<_> = mine.filter(|e| span.begin <= e.begin && e.end <= span.end).collect();
            assert!(within.iter().all(|e| e.envelope.tag.request == job && e.peer == 1 - rank as usize));
            let kinds: Vec<_> = within.iter().map(|e| e.kind).collect();
            assert_eq!(kinds, [EventKind::Send, EventKind::Post, EventKind::Wait]);
        }
    }
}

#[tokio::test]
async fn a_job_that_the_layout_cannot_make_is_refused() {
    let (cluster, seen) = start(Layout { cfg: 2, ..Layout::SERIAL }).await;
    let error = end(cluster.submit(vec![request("a", 0)])).await.unwrap_err();
    assert!(error.to_string().contains("use_cfg_parallel"), "{error}");
    assert!(error.hint().unwrap().contains("true_cfg_scale") && error.exit() == ExitCode::Infeasible);
    assert!(seen.begun.lock().unwrap().is_empty());
    let mut guided = request("a", 5);
    guided.negative_prompt = Some(String::new());
    guided.true_cfg_scale = 2.0.try_into().unwrap();
    assert_eq!(end(cluster.submit(vec![guided])).await, Ok(vec![5]));
}

#[tokio::test]
async fn a_rank_that_cannot_load_is_named() {
    let load = |rank| -> Result<Box<dyn Engine>, StartError> {
        if rank == 5 { panic!("out of memory") } else { Ok(Box::new(Rank { rank, seen: Arc::default() })) }
    };
    let parallel = Parallel { ask: Ask::layout(EIGHT), ..Parallel::default() };
    let options = EngineOptions { parallel, ..EngineOptions::default() };
    let error = Cluster::with_engine(Arc::new(load), known::flux_schnell(), options).await.err().unwrap();
    assert!(error.to_string().contains("rank 5 (replica 1, ulysses 1): out of memory"), "{error}");
}

#[tokio::test]
async fn a_listener_sees_a_rank_die_and_come_back() {
    let (cluster, _) = start(TWO).await;
    let is = |rank: usize, state: RankState| cluster.status()[rank].state == state;
    assert!(is(0, RankState::Idle) && is(1, RankState::Idle));
    let mut events = cluster.rank_events();
    let job = cluster.submit(vec![request("panic 1", 0)]);
    assert!(matches!(end(job).await, Err(JobError::Panicked(_))));
    assert_eq!(end(cluster.submit(vec![request("a", 3)])).await, Ok(vec![3]));
    let mut of_one = Vec::new();
    let expected = [
        RankState::Busy { job: 0 },
        RankState::Lost,
        RankState::Loading,
        RankState::Idle,
        RankState::Busy { job: 1 },
        RankState::Idle,
    ];
    while of_one.len() < expected.len() {
        let event = timeout(SOON, events.recv()).await.expect("events come").unwrap();
        if event.rank == 1 {
            of_one.push(event.state);
        }
    }
    assert_eq!(of_one, expected);
    assert_eq!(cluster.status()[1].coords, [0, 0, 0, 0, 1]);
}

#[tokio::test]
async fn a_job_can_be_awaited_and_cancelled() {
    let (cluster, _) = start(TWO).await;
    assert_eq!(cluster.submit(vec![request("a", 4)]).await.unwrap()[0].seed, Seed(4));
    let job = cluster.submit(vec![request("dawdle", 0)]);
    job.cancel();
    assert_eq!(timeout(SOON, job.into_future()).await.expect("it ends soon"), Err(JobError::Cancelled));
    assert_eq!(cluster.plan(&[request("a", 0)]).unwrap().layout, TWO);
}
