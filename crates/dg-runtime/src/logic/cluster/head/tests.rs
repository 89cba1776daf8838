use super::*;
use crate::logic::cluster::job::Failure;
use crate::logic::cluster::placement::Kind;
use crate::logic::cluster::planner::{Choice, Supply};
use crate::logic::cluster::{ClientId, ModelHash};
use dg_plan::Layout;

/// All ranks that there are, side by side; memory is shared out.
struct All;

impl Planner for All {
    fn choose(&self, spec: &JobSpec, supply: Supply) -> Option<Choice> {
        let ranks = supply.ranks.min(spec.ranks_max);
        let memory_bytes = 900 / ranks.max(1) as u64;
        let layout = Layout { ulysses: ranks as u32, ..Layout::SERIAL };
        let run = Duration::from_secs(60) / ranks.max(1) as u32 / supply.flops.max(1) as u32;
        let fits = ranks >= spec.ranks_min && memory_bytes <= supply.memory_bytes;
        fits.then_some(Choice { layout, run, memory_bytes, is_streamed: false })
    }
}

/// A head whose ranks answer at once.
struct Tested {
    head: Head<All>,
    now: Duration,
    /// All that it told ranks, but for what is repeated.
    orders: Vec<(RankId, Stamp, Order)>,
    rest: Vec<Action>,
    /// Whether ranks answer that they are done.
    are_done: bool,
}

impl Tested {
    fn new(nodes: u32) -> Self {
        let head = Head::new(1, HeadTimes::default(), All);
        let mut tested =
            Self { head, now: Duration::ZERO, orders: Vec::new(), rest: Vec::new(), are_done: false };
        for node in 0..nodes {
            tested.tell(Event::Hello(NodeId(node), facts(node, 1)));
        }
        tested.rest.clear();
        tested
    }

    fn tell(&mut self, event: Event) {
        for action in self.head.handle(event, self.now) {
            match action {
                Action::Spawn(rank, start) => self.tell(Event::Spawned(rank, start)),
                Action::Kill(rank, start) => self.tell(Event::Exited(rank, start, Vec::new())),
                Action::Order(rank, start, epoch, order) => {
                    let say = match order {
                        Order::Prepare(_) => Some(Say::Prepared),
                        Order::InitGroup => Some(Say::Grouped),
                        Order::Abort => Some(Say::Stopped),
                        Order::Run { .. } => self.are_done.then_some(Say::Done),
                    };
                    self.orders.push((rank, epoch, order));
                    if let Some(say) = say {
                        self.tell(Event::Said(rank, start, epoch, say));
                    }
                }
                Action::SetTimer(_) => {}
                action => self.rest.push(action),
            }
        }
    }

    fn submit(&mut self, job: u64, ranks_min: usize, model: u64) {
        self.submit_for(job, (ranks_min, 4), model);
    }

    fn submit_for(&mut self, job: u64, (ranks_min, ranks_max): (usize, usize), model: u64) {
        self.tell(Event::Submit(JobId(job), spec((ranks_min, ranks_max), model)));
    }

    /// Ranks that the job has.
    fn ranks(&self, job: u64) -> Vec<RankId> {
        let epoch = self.head.job(JobId(job)).and_then(Job::epoch);
        epoch.map_or_else(Vec::new, |epoch| epoch.team.members.clone())
    }
}

fn spec((ranks_min, ranks_max): (usize, usize), model: u64) -> JobSpec {
    JobSpec {
        client: ClientId(0),
        priority: 0,
        model: ModelHash(model),
        kind: None,
        steps: 20,
        ranks_min,
        ranks_max,
        work: None,
        ask: None,
    }
}

fn facts(node: u32, incarnation: u64) -> Facts {
    Facts {
        name: format!("n{node}"),
        incarnation,
        kind: Kind::Cuda,
        slots: 2,
        memory_bytes: 1000,
        flops: 0,
        models: vec![ModelHash(1)],
        running: Vec::new(),
    }
}

/// The nodes that two of two ranks each give to a job of up to `ranks_max` ranks, for their speed and memory.
fn nodes_for(ranks_max: usize, nodes: [(u64, u64); 2]) -> Vec<u32> {
    let mut tested = Tested::new(0);
    for (node, (flops, memory_bytes)) in (0..).zip(nodes) {
        let facts = Facts { flops, memory_bytes, ..facts(node, 1) };
        tested.tell(Event::Hello(NodeId(node), facts));
    }
    tested.submit_for(1, (1, ranks_max), 1);
    tested.ranks(1).iter().map(|rank| rank.node.0).collect()
}

#[test]
fn slow_nodes_are_left_out_where_they_would_hold_up_the_others() {
    assert_eq!(nodes_for(4, [(1, 1000), (4, 1000)]), [1, 1]);
    assert_eq!(nodes_for(4, [(3, 1000), (2, 1000)]), [0, 0, 1, 1]);
    assert_eq!(nodes_for(1, [(1, 1000), (4, 1000)]), [1]);
    assert_eq!(nodes_for(4, [(0, 1000), (4, 1000)]), [1, 1], "not known counts as slow");
}

#[test]
fn a_layout_that_is_asked_for_takes_slow_nodes_too() {
    let mut tested = Tested::new(0);
    for (node, flops) in (0..).zip([1, 4]) {
        tested.tell(Event::Hello(NodeId(node), Facts { flops, ..facts(node, 1) }));
    }
    let ask = dg_plan::Ask::layout(Layout { ulysses: 4, ..Layout::SERIAL });
    let spec = JobSpec { ask: Some(std::sync::Arc::new(ask)), ..spec((1, 4), 1) };
    tested.tell(Event::Submit(JobId(1), spec));
    assert_eq!(tested.ranks(1).len(), 4);
}

#[test]
fn a_job_that_fits_on_large_nodes_only_gets_these() {
    assert_eq!(nodes_for(2, [(1, 300), (1, 1000)]), [1, 1]);
    assert_eq!(nodes_for(2, [(1, 1000), (1, 300)]), [0, 0]);
    assert_eq!(nodes_for(4, [(1, 300), (1, 1000)]), [0, 0, 1, 1], "shared out it fits everywhere");
    assert_eq!(nodes_for(1, [(4, 300), (1, 1000)]), [1], "the fast one is too small");
}

#[test]
fn a_job_gets_ranks_computes_and_ends_once() {
    let mut tested = Tested::new(2);
    tested.are_done = true;
    tested.submit(1, 1, 1);
    tested.submit(1, 1, 1);
    assert_eq!(tested.rest, [Action::Finish(JobId(1), End::Done)]);
    assert_eq!(tested.orders.len(), 4 * 3, "four ranks, three orders");
}

#[test]
fn a_job_for_a_model_that_a_node_does_not_have_is_refused() {
    let mut tested = Tested::new(2);
    tested.submit(1, 1, 2);
    assert_eq!(tested.rest, [Action::Refuse(JobId(1), Refusal::NoModel(NodeId(0)))]);
}

#[test]
fn a_job_that_loses_its_node_goes_on_with_what_is_left_in_a_new_epoch() {
    let mut tested = Tested::new(2);
    tested.submit(1, 1, 1);
    assert_eq!(tested.ranks(1).len(), 4);
    let before = tested.orders[0].1;
    tested.tell(Event::Closed(NodeId(1), 1));
    let left: Vec<_> = (0..2).map(|slot| RankId { node: NodeId(0), slot }).collect();
    assert_eq!(tested.ranks(1), left);
    let last = tested.orders.last().map(|(_, epoch, _)| *epoch);
    assert!(last > Some(before));
}

#[test]
fn a_job_that_needs_more_than_there_is_does_not_hold_up_others() {
    let mut tested = Tested::new(1);
    tested.submit(1, 4, 1);
    tested.submit(2, 1, 1);
    assert_eq!((tested.ranks(1).len(), tested.ranks(2).len()), (0, 2));
    tested.tell(Event::Hello(NodeId(1), facts(1, 1)));
    assert_eq!(tested.ranks(1).len(), 0, "not while the other one runs");
    tested.tell(Event::Cancel(JobId(2)));
    assert_eq!((tested.ranks(1).len(), tested.head.jobs()), (4, 1));
    assert_eq!(tested.rest.last(), Some(&Action::Finish(JobId(2), End::Cancelled)));
}

#[test]
fn a_job_without_ranks_fails_when_patience_ends() {
    let mut tested = Tested::new(1);
    tested.submit(1, 4, 1);
    tested.now = Duration::from_secs(600);
    tested.tell(Event::Tick);
    assert_eq!(tested.rest.last(), Some(&Action::Finish(JobId(1), End::Failed(Failure::NoRanks))));
}

#[test]
fn a_restarted_agent_takes_the_place_of_its_ghost_at_once() {
    let mut tested = Tested::new(1);
    tested.submit(1, 1, 1);
    let before = tested.head.job(JobId(1)).and_then(Job::epoch).map(|epoch| epoch.stamp);
    tested.tell(Event::Hello(NodeId(0), facts(0, 2)));
    let after = tested.head.job(JobId(1)).and_then(Job::epoch).map(|epoch| epoch.stamp);
    assert!(after > before && tested.ranks(1).len() == 2);
    tested.tell(Event::Closed(NodeId(0), 1));
    assert_eq!(tested.ranks(1).len(), 2, "that was the ghost's connection");
    tested.tell(Event::Renew(NodeId(0), 1, 5));
    assert_eq!(tested.rest.last(), Some(&Action::RefuseNode(NodeId(0), 1)));
}

#[test]
fn ten_thousand_jobs_may_wait() {
    let mut tested = Tested::new(1);
    for job in 1..=10_000 {
        tested.submit(job, 1, 1);
    }
    assert_eq!((tested.head.jobs(), tested.rest.len()), (10_000, 0));
}

/// Two CUDA nodes and a CPU node, of two ranks each.
fn mixed() -> Tested {
    let mut tested = Tested::new(2);
    tested.tell(Event::Hello(NodeId(2), Facts { kind: Kind::Cpu, ..facts(2, 1) }));
    tested
}

impl Tested {
    fn submit_on(&mut self, job: u64, kind: Option<Kind>) {
        self.tell(Event::Submit(JobId(job), JobSpec { kind, ..spec((1, 4), 1) }));
    }

    /// Nodes of a job's ranks.
    fn nodes(&self, job: u64) -> Vec<u32> {
        self.ranks(job).iter().map(|rank| rank.node.0).collect()
    }
}

#[test]
fn a_replica_is_of_one_kind_and_jobs_of_both_kinds_run_at_once() {
    let mut tested = mixed();
    tested.submit_on(1, None);
    tested.submit_on(2, Some(Kind::Cpu));
    assert_eq!((tested.nodes(1), tested.nodes(2)), (vec![0, 0, 1, 1], vec![2, 2]));
    tested.submit_on(3, Some(Kind::Cuda));
    tested.submit_on(4, Some(Kind::Cpu));
    tested.tell(Event::Cancel(JobId(2)));
    assert_eq!(
        (tested.nodes(3), tested.nodes(4)),
        (vec![], vec![2, 2]),
        "the third waits, and nobody for it"
    );
    tested.tell(Event::Cancel(JobId(1)));
    assert_eq!(tested.nodes(3), [0, 0, 1, 1]);
}

#[test]
fn what_is_asked_for_is_waited_for_and_what_is_left_is_joined_by_its_like() {
    let mut tested = mixed();
    tested.submit_on(1, Some(Kind::Cpu));
    tested.tell(Event::Closed(NodeId(2), 1));
    assert_eq!(tested.nodes(1), [0; 0], "no CUDA devices in their place");
    tested.tell(Event::Hello(NodeId(2), Facts { kind: Kind::Cpu, ..facts(2, 2) }));
    // A job that has begun goes on with the first that comes back.
    assert_eq!(tested.nodes(1), [2]);
    tested.submit_on(2, None);
    tested.tell(Event::Closed(NodeId(0), 1));
    assert_eq!(tested.nodes(2), [1, 1], "its own kind");
    tested.tell(Event::Cancel(JobId(1)));
    tested.tell(Event::Closed(NodeId(1), 1));
    assert_eq!(tested.nodes(2), [2, 2], "who does not mind takes CPUs when there are no CUDA devices");
}
