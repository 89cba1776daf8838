//! The network between the head and the nodes, and what goes wrong with it and with them.

use super::{Duration, Event, Happens, Message, NodeId, RankId, World, lease, restart};
use crate::faults::{Fault, Planned};
use crate::rng::Rng;
use dg_runtime::logic::cluster::JobId;
use dg_runtime::logic::cluster::epoch::{Order, Say, Trouble};
use dg_runtime::logic::cluster::lease::NodeEvent;
use dg_runtime::logic::cluster::registry::Facts;
use dg_runtime::logic::cluster::{ModelHash, placement::Kind};

/// How links are.
#[derive(Debug)]
pub(crate) struct Network {
    /// Reasons for which nothing passes to a node, and from it.
    pub(crate) down: Vec<[u32; 2]>,
    /// Percent of messages that are lost, and come twice, when all is well.
    loss: u64,
    doubled: u64,
    /// More loss, and later, for some time.
    pub(crate) bursts: u64,
    pub(crate) slow: u64,
    /// When the latest message of each link arrives.
    latest: Vec<[Duration; 2]>,
}

impl Network {
    pub(crate) fn new(rng: &mut Rng, nodes: usize) -> Self {
        let down = vec![[0; 2]; nodes];
        let latest = vec![[Duration::ZERO; 2]; nodes];
        Self {
            down,
            loss: rng.range(0, 6),
            doubled: if rng.percent(10) { 40 } else { rng.range(0, 8) },
            bursts: 0,
            slow: 0,
            latest,
        }
    }
}

impl World {
    pub(super) fn send_down(&mut self, node: NodeId, message: Message) {
        for at in self.arrivals(node, 0) {
            self.at(at, Happens::ToNode(node, message.clone()));
        }
    }

    pub(super) fn send_up(&mut self, node: NodeId, event: Event) {
        for at in self.arrivals(node, 1) {
            self.at(at, Happens::ToHead(node, event.clone()));
        }
    }

    /// When a message arrives: never, once or twice, and maybe before one that was sent earlier.
    fn arrivals(&mut self, node: NodeId, way: usize) -> Vec<Duration> {
        let index = node.0 as usize;
        self.counts.sent += 1;
        let loss = self.network.loss + 30 * self.network.bursts;
        if self.network.down[index][way] > 0 || self.rng.percent(loss) {
            self.counts.lost += 1;
            return Vec::new();
        }
        let copies = 1 + u64::from(self.rng.percent(self.network.doubled));
        self.counts.doubled += copies - 1;
        let slowest = if self.network.slow > 0 { 900_000 } else { 15_000 };
        let arrive = |copy| {
            // A second copy may come when all has moved on.
            let at = self.now + Duration::from_micros(self.rng.range(200, slowest + copy * 1_500_000));
            let latest = &mut self.network.latest[index][way];
            self.counts.reordered += u64::from(at < *latest);
            *latest = at.max(*latest);
            at
        };
        (0..copies).map(arrive).collect()
    }

    pub(super) fn hello(&mut self, node: NodeId, incarnation: u64) {
        let index = node.0 as usize;
        let agent = &mut self.agents[index];
        if !agent.is_alive || agent.incarnation != incarnation {
            return;
        }
        if self.now > agent.heard + super::IDLE {
            agent.is_welcome = false;
        }
        if !agent.is_welcome {
            let facts = Facts {
                name: format!("node{index}"),
                incarnation,
                kind: Kind::Cpu,
                slots: agent.ranks.len() as u16,
                memory_bytes: 10_000,
                flops: 0,
                models: vec![ModelHash(1)],
                running: agent.running(),
            };
            self.send_up(node, Event::Hello(node, facts));
        }
        self.after_ms(400, 600, Happens::Hello(node, incarnation));
    }

    pub(super) fn arrive_at_node(&mut self, node: NodeId, message: Message) -> Result<(), String> {
        let index = node.0 as usize;
        let agent = &mut self.agents[index];
        if !agent.is_alive {
            return Ok(());
        }
        agent.heard = self.now;
        match message {
            Message::Welcome => agent.is_welcome = true,
            Message::Refused(incarnation) => agent.is_welcome &= agent.incarnation != incarnation,
            Message::Granted(term, seq, ttl) => self.keep(node, NodeEvent::Granted { term, seq, ttl }),
            Message::Spawn(rank, start) => self.spawn(rank, start),
            Message::Kill(rank, start) => self.kill(rank, start),
            Message::Order(rank, start, epoch, order) => {
                let clock = agent.clock(self.now);
                if agent.keeper.is_held(clock) || order == Order::Abort {
                    return self.order(rank, start, epoch, &order);
                }
            }
        }
        Ok(())
    }

    pub(super) fn fault(&mut self, planned: Planned) {
        let Planned { fault, node, slot, lasts, .. } = planned;
        *self.counts.faults.entry(fault).or_default() += 1;
        let rank = RankId { node: NodeId(node as u32), slot: slot as u16 };
        match fault {
            Fault::AgentCrash | Fault::NodeCrash => {
                self.agents[node].kill();
                let lasts = if fault == Fault::AgentCrash { lasts / 8 } else { lasts };
                self.at(self.now + lasts, Happens::Heal(restart(node)));
            }
            Fault::RankCrash => self.die(rank, "killed"),
            Fault::HangForEver => self.rank_mut(rank).is_hung = true,
            Fault::Pause => {
                self.rank_mut(rank).is_hung = true;
                self.at(self.now + lasts, Happens::Heal(planned));
            }
            Fault::Oom => self.rank_mut(rank).trouble = Some(Trouble::Oom { need: 9000, free: None }),
            Fault::DeviceLost => self.rank_mut(rank).trouble = Some(Trouble::DeviceLost),
            Fault::Cancel => {
                let job = JobId(self.rng.range(1, 1 + self.jobs.len() as u64));
                self.at(self.now, Happens::Cancel(job));
            }
            Fault::HeadRestart => {
                self.head_down += 1;
                self.at(self.now + lasts, Happens::Heal(planned));
            }
            Fault::Drain => {
                let event = Event::Drain(NodeId(node as u32), true);
                self.at(self.now, Happens::ToHead(NodeId(node as u32), event));
                self.at(self.now + lasts, Happens::Heal(planned));
            }
            Fault::Flap => {
                for n in 0..4 {
                    let link = Planned { fault: Fault::Partition, ..planned };
                    self.at(self.now + lasts * 2 * n, Happens::Fault(link));
                }
            }
            _ => {
                self.link(planned, true);
                self.at(self.now + lasts, Happens::Heal(planned));
            }
        }
    }

    fn link(&mut self, planned: Planned, is_broken: bool) {
        let by = if is_broken { 1 } else { -1 };
        let [down, up] = &mut self.network.down[planned.node];
        match planned.fault {
            Fault::Partition => (*down, *up) = (down.wrapping_add_signed(by), up.wrapping_add_signed(by)),
            Fault::OneWayFromHead => *down = down.wrapping_add_signed(by),
            Fault::OneWayToHead => *up = up.wrapping_add_signed(by),
            Fault::Loss => self.network.bursts = self.network.bursts.wrapping_add_signed(i64::from(by)),
            Fault::Slow => self.network.slow = self.network.slow.wrapping_add_signed(i64::from(by)),
            _ => {}
        }
    }

    pub(super) fn heal(&mut self, planned: Planned) -> Result<(), String> {
        let node = NodeId(planned.node as u32);
        match planned.fault {
            Fault::AgentCrash => {
                if !self.agents[planned.node].is_alive {
                    self.agents[planned.node].restart(self.now, lease());
                    let incarnation = self.agents[planned.node].incarnation;
                    self.at(self.now, Happens::AgentTimer(node, incarnation));
                    self.at(self.now, Happens::Hello(node, incarnation));
                }
            }
            Fault::Pause => {
                let rank = RankId { node, slot: planned.slot as u16 };
                let there = self.rank_mut(rank);
                there.is_hung = false;
                let version = there.version;
                if there.is_computing() {
                    self.at(self.now, Happens::Step(rank, version));
                }
            }
            Fault::Drain => return self.tell_head(Event::Drain(node, false)),
            Fault::HeadRestart => return self.restart_head(),
            _ => self.link(planned, false),
        }
        Ok(())
    }

    pub(super) fn say(&mut self, rank: RankId, say: Say) {
        let there = self.rank(rank);
        let epoch = there.work.as_ref().map(|work| work.epoch).or_else(|| there.fence.have());
        if let (Some(start), Some(epoch)) = (there.process, epoch) {
            self.send_up(rank.node, Event::Said(rank, start, epoch, say));
        }
    }
}
