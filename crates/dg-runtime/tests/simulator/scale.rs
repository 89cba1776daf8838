//! Many nodes on a network that is good: joins, leases, the loss of a rack, re-plans. `DG_SIM_NODES=1000` for the long
//! form. Nothing is asserted about time; it is printed.

use crate::world::Simple;
use dg_runtime::logic::cluster::checkpoint::Reference;
use dg_runtime::logic::cluster::epoch::{Order, Say};
use dg_runtime::logic::cluster::head::{Action, Event, Head, HeadTimes};
use dg_runtime::logic::cluster::job::{End, JobSpec};
use dg_runtime::logic::cluster::placement::Kind;
use dg_runtime::logic::cluster::registry::Facts;
use dg_runtime::logic::cluster::{ClientId, JobId, ModelHash, NodeId, RankId, Stamp};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::{Duration, Instant};

/// The head, and ranks that do as they are told.
struct Scale {
    head: Head<Simple>,
    now: Duration,
    agenda: BinaryHeap<Reverse<(Duration, u64)>>,
    what: BTreeMap<u64, Event>,
    next: u64,
    /// Nodes that are lost.
    lost: u32,
    /// The epoch that each rank works at.
    epochs: HashMap<RankId, Stamp>,
    done: usize,
    resumed: usize,
    failed: usize,
    head_time: Duration,
    events: u64,
}

impl Scale {
    fn at(&mut self, at: Duration, event: Event) {
        self.next += 1;
        self.agenda.push(Reverse((at.max(self.now), self.next)));
        self.what.insert(self.next, event);
    }

    fn hello(&mut self, node: u32, incarnation: u64, at: Duration) {
        let facts = Facts {
            name: format!("node{node}"),
            incarnation,
            kind: Kind::Cpu,
            slots: SLOTS,
            memory_bytes: 10_000,
            flops: 0,
            models: vec![ModelHash(1)],
            running: Vec::new(),
        };
        self.at(at, Event::Hello(NodeId(node), facts));
        self.at(at + Duration::from_secs(1), Event::Renew(NodeId(node), incarnation, 1));
    }

    fn run(&mut self, jobs: usize) {
        while let Some(Reverse((at, id))) = self.agenda.pop() {
            let Some(event) = self.what.remove(&id) else { continue };
            self.now = at;
            if self.done + self.failed == jobs {
                break;
            }
            if self.is_void(&event) {
                continue;
            }
            if let Event::Renew(node, incarnation, seq) = event {
                self.at(at + Duration::from_secs(1), Event::Renew(node, incarnation, seq + 1));
            }
            let began = Instant::now();
            let actions = self.head.handle(event, at);
            self.head_time += began.elapsed();
            self.events += 1;
            for action in actions {
                self.carry_out(action);
            }
        }
    }

    /// Lost nodes say nothing, and ranks nothing of what they no longer do.
    fn is_void(&self, event: &Event) -> bool {
        match event {
            Event::Renew(node, incarnation, _) => node.0 < self.lost && *incarnation == 1 && self.now > LOSS,
            Event::Said(rank, _, epoch, _) => {
                (rank.node.0 < self.lost && self.now > LOSS && self.now < RETURN)
                    || self.epochs.get(rank) != Some(epoch)
            }
            _ => false,
        }
    }

    fn carry_out(&mut self, action: Action) {
        let soon = self.now + Duration::from_millis(10);
        match action {
            Action::SetTimer(at) => self.at(at, Event::Tick),
            Action::Spawn(rank, start) => {
                self.at(self.now + Duration::from_secs(1), Event::Spawned(rank, start));
            }
            Action::Kill(rank, start) => self.at(soon, Event::Exited(rank, start, Vec::new())),
            Action::Order(rank, start, epoch, order) => self.order(rank, start, epoch, &order),
            Action::Finish(_, End::Done) => self.done += 1,
            Action::Finish(..) | Action::Refuse(..) => self.failed += 1,
            Action::Resumed(..) => self.resumed += 1,
            _ => {}
        }
    }

    fn order(&mut self, rank: RankId, start: Stamp, epoch: Stamp, order: &Order) {
        let soon = self.now + Duration::from_millis(10);
        let before = self.epochs.insert(rank, epoch);
        match order {
            Order::Prepare(_) => self.at(soon, Event::Said(rank, start, epoch, Say::Prepared)),
            Order::InitGroup => self.at(soon, Event::Said(rank, start, epoch, Say::Grouped)),
            Order::Abort => self.at(soon, Event::Said(rank, start, epoch, Say::Stopped)),
            Order::Run { from_step, .. } if before == Some(epoch) => {
                for step in from_step + 1..=STEPS {
                    let at = self.now + STEP * (step - from_step);
                    let kept = Say::Checkpoint(step, Reference(u64::from(step)));
                    self.at(at, Event::Said(rank, start, epoch, kept));
                    self.at(at, Event::Said(rank, start, epoch, Say::Progress(step)));
                }
                let at = self.now + STEP * (STEPS - from_step) + Duration::from_millis(1);
                self.at(at, Event::Said(rank, start, epoch, Say::Done));
            }
            Order::Run { .. } => {}
        }
    }
}

fn simulate(nodes: u32) {
    let times = HeadTimes::default();
    // Steps are longer than orders are repeated after: here nothing is lost.
    let epoch =
        dg_runtime::logic::cluster::epoch::EpochTimes { resend: Duration::from_secs(60), ..times.epoch };
    let mut scale = Scale {
        head: Head::new(1, HeadTimes { epoch, ..times }, Simple),
        now: Duration::ZERO,
        agenda: BinaryHeap::new(),
        what: BTreeMap::new(),
        next: 0,
        lost: nodes / 8,
        epochs: HashMap::new(),
        done: 0,
        resumed: 0,
        failed: 0,
        head_time: Duration::ZERO,
        events: 0,
    };
    for node in 0..nodes {
        scale.hello(node, 1, Duration::from_millis(u64::from(node)));
    }
    let jobs = 3 * nodes as usize;
    for number in 1..=jobs as u64 {
        let spec = JobSpec {
            client: ClientId(number as u32 % 7),
            priority: (number % 3) as u8,
            model: ModelHash(1),
            kind: None,
            steps: STEPS,
            ranks_min: 1,
            ranks_max: usize::from(SLOTS),
            work: None,
            ask: None,
        };
        scale.at(Duration::from_secs(2), Event::Submit(JobId(number), spec));
    }
    for node in 0..scale.lost {
        scale.at(LOSS, Event::Closed(NodeId(node), 1));
        scale.hello(node, 2, RETURN);
    }
    let before = rss();
    scale.run(jobs);
    let (done, resumed, failed) = (scale.done, scale.resumed, scale.failed);
    println!(
        "{nodes} nodes × {SLOTS} ranks, {jobs} jobs ({resumed} resumed) in {:.1} s of their time: {} events, {:.0} \
         events/s of the head, {} KiB more memory",
        scale.now.as_secs_f64(),
        scale.events,
        scale.events as f64 / scale.head_time.as_secs_f64(),
        rss().saturating_sub(before),
    );
    assert_eq!((done, failed), (jobs, 0));
    assert!(resumed > 0, "the loss of the rack went unnoticed");
}

/// KiB of this process.
fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[test]
fn many_nodes_lose_a_rack() {
    let most = crate::number("DG_SIM_NODES").unwrap_or(64) as u32;
    for nodes in [most / 4, most / 2, most] {
        simulate(nodes);
    }
}

const SLOTS: u16 = 8;
const STEPS: u32 = 20;
const STEP: Duration = Duration::from_millis(200);
const LOSS: Duration = Duration::from_secs(5);
const RETURN: Duration = Duration::from_secs(12);
