//! What processes do.

use super::{Event, Happens, NodeId, Order, RankId, Stamp, World};
use crate::agent::{Peers, Rank, Reply, Stage, peers};
use dg_runtime::logic::cluster::checkpoint::Reference;
use dg_runtime::logic::cluster::epoch::{Say, Trouble};

impl World {
    pub(super) fn rank(&self, rank: RankId) -> &Rank {
        &self.agents[rank.node.0 as usize].ranks[usize::from(rank.slot)]
    }

    pub(super) fn rank_mut(&mut self, rank: RankId) -> &mut Rank {
        &mut self.agents[rank.node.0 as usize].ranks[usize::from(rank.slot)]
    }

    pub(super) fn spawn(&mut self, rank: RankId, start: Stamp) {
        let there = self.rank_mut(rank);
        if there.process == Some(start) {
            self.send_up(rank.node, Event::Spawned(rank, start));
        } else if there.newest.is_none_or(|newest| newest < start) {
            there.newest = Some(start);
            there.begin(start);
            let version = there.version;
            self.after_ms(30, 200, Happens::Spawned(rank, version));
        } else {
            self.send_up(rank.node, Event::Exited(rank, start, Vec::new()));
        }
    }

    pub(super) fn kill(&mut self, rank: RankId, start: Stamp) {
        let there = self.rank_mut(rank);
        if there.process == Some(start) {
            there.kill();
        }
        there.newest = there.newest.max(Some(start));
        self.send_up(rank.node, Event::Exited(rank, start, Vec::new()));
    }

    /// A process ends by itself, and its agent sees it.
    pub(super) fn die(&mut self, rank: RankId, why: &str) {
        let there = self.rank_mut(rank);
        let Some(start) = there.process else { return };
        there.kill();
        self.send_up(rank.node, Event::Exited(rank, start, vec![why.to_owned()]));
    }

    /// The lease is over and the grace too.
    pub(super) fn kill_busy(&mut self, node: NodeId) {
        for slot in 0..self.agents[node.0 as usize].ranks.len() as u16 {
            let rank = RankId { node, slot };
            if self.rank(rank).is_computing() {
                self.die(rank, "no lease");
            }
        }
    }

    pub(super) fn order(
        &mut self,
        rank: RankId,
        start: Stamp,
        epoch: Stamp,
        order: &Order,
    ) -> Result<(), String> {
        if self.rank(rank).process != Some(start) {
            if self.rank(rank).newest.is_none_or(|newest| newest >= start) {
                self.send_up(rank.node, Event::Exited(rank, start, Vec::new()));
            }
            return Ok(());
        }
        let checks = self.rules.fences;
        let reply = self.rank_mut(rank).order(epoch, order, checks);
        let version = self.rank(rank).version;
        match reply {
            Reply::Say(say) => self.send_up(rank.node, Event::Said(rank, start, epoch, say)),
            Reply::Load => {
                self.checker.begins(rank, start, epoch)?;
                self.after_ms(5, 120, Happens::Loaded(rank, version));
            }
            Reply::Compute => self.after_ms(15, 60, Happens::Step(rank, version)),
            Reply::Nothing => {}
        }
        Ok(())
    }

    pub(super) fn loaded(&mut self, rank: RankId, version: u64) {
        let there = self.rank_mut(rank);
        if there.version != version || there.is_hung {
            return;
        }
        if let Some(work) = &mut there.work {
            work.stage = Stage::Ready;
            self.say(rank, Say::Prepared);
        }
    }

    /// A rank is at the end of a step.
    pub(super) fn step(&mut self, rank: RankId, version: u64) -> Result<(), String> {
        let there = self.rank(rank);
        let Some(work) = there.work.clone().filter(|_| there.version == version) else { return Ok(()) };
        if there.is_hung || work.stage != Stage::Computing {
            return Ok(());
        }
        if work.is_stopping {
            let there = self.rank_mut(rank);
            (there.work, there.version) = (None, version + 1);
            self.say(rank, Say::Stopped);
            return Ok(());
        }
        if let Some(trouble) = self.rank_mut(rank).trouble.take() {
            let truth = self.checker.jobs.entry(work.team.job).or_default();
            truth.was_short |= matches!(trouble, Trouble::Oom { .. });
            self.break_off(rank, trouble);
            return Ok(());
        }
        let down = &self.network.down;
        let is_cut = |node: NodeId| down[node.0 as usize] != [0, 0];
        let reaches = |peer: RankId| peer.node == rank.node || !(is_cut(peer.node) || is_cut(rank.node));
        match peers(&self.agents, rank, &work, &reaches) {
            Peers::Gone => self.break_off(rank, Trouble::PeerLost),
            Peers::Behind => self.after_ms(10, 30, Happens::Step(rank, version)),
            Peers::Along => return self.advance(rank, version),
        }
        Ok(())
    }

    fn break_off(&mut self, rank: RankId, trouble: Trouble) {
        if let Some(work) = &mut self.rank_mut(rank).work {
            work.stage = Stage::Broken(trouble.clone());
        }
        self.say(rank, Say::Failed(trouble));
    }

    fn advance(&mut self, rank: RankId, version: u64) -> Result<(), String> {
        let Some(work) = &mut self.rank_mut(rank).work else { return Ok(()) };
        let (job, step) = (work.team.job, work.step + 1);
        work.step = step;
        self.checker.step(&self.head, &self.agents, rank, step, self.now)?;
        self.say(rank, Say::Checkpoint(step, Reference(u64::from(step))));
        self.say(rank, Say::Progress(step));
        if step < self.jobs[&job].steps {
            self.after_ms(15, 60, Happens::Step(rank, version));
        } else {
            if let Some(work) = &mut self.rank_mut(rank).work {
                work.stage = Stage::Done;
            }
            self.say(rank, Say::Done);
        }
        Ok(())
    }
}
