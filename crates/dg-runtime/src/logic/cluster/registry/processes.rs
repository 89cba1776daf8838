//! What happens to single nodes and processes.

use super::{
    Action, Cause, Duration, Facts, Node, NodeId, Process, ProcessTimes, Rank, RankId, Registry, Stamp,
};

impl Registry {
    pub(super) fn up(&mut self, id: NodeId, facts: Facts, is_restart: bool, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        let was_up = self.nodes.get(&id).is_some_and(|node| node.is_up);
        if was_up && !is_restart {
            // It has not heard that it is in.
            return actions;
        }
        if was_up {
            actions = self.down(id, now);
        }
        let fresh = || Rank { process: Process::Absent, deaths: Vec::new() };
        let node = self.nodes.entry(id).or_insert_with(|| Node {
            facts: facts.clone(),
            is_up: true,
            is_draining: false,
            ranks: Vec::new(),
        });
        if is_restart {
            node.ranks.clear();
        }
        node.ranks.resize_with(usize::from(facts.slots), fresh);
        let running = facts.running.clone();
        self.up += 1;
        for model in &facts.models {
            *self.models.entry(*model).or_default() += 1;
        }
        let kind = facts.kind;
        (node.is_up, node.facts) = (true, facts);
        self.sort(kind);
        self.count(id, true);
        for slot in 0..self.nodes.get(&id).map_or(0, |node| node.facts.slots) {
            let rank = RankId { node: id, slot };
            match running.iter().find(|(other, _)| *other == slot) {
                _ if self.process(rank) == Process::Bad => {}
                // What it does is not known: of an earlier head, or of a job that was given away.
                Some((_, start)) => actions.extend(self.stop(rank, *start, Duration::ZERO, now)),
                None => actions.extend(self.spawn(rank, now)),
            }
        }
        actions.push(Action::Grown);
        actions
    }

    pub(super) fn down(&mut self, id: NodeId, now: Duration) -> Vec<Action> {
        let Some(node) = self.nodes.get(&id).filter(|node| node.is_up) else { return Vec::new() };
        self.up -= 1;
        for model in &node.facts.models {
            if let Some(count) = self.models.get_mut(model) {
                *count -= 1;
            }
        }
        let slots = node.facts.slots;
        self.count(id, false);
        let mut actions = Vec::new();
        for rank in (0..slots).map(|slot| RankId { node: id, slot }) {
            let process = self.process(rank);
            if process != Process::Bad {
                self.set(rank, Process::Absent, now);
            }
            if let Process::Busy(_, job) = process {
                actions.push(Action::Lost(rank, job, Cause::NodeLost(rank)));
            }
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.is_up = false;
            let kind = node.facts.kind;
            self.sort(kind);
        }
        actions
    }

    /// The ranks of a node count, or do not count any more.
    fn count(&mut self, id: NodeId, is_in: bool) {
        let Some(node) = self.nodes.get(&id).filter(|node| node.is_up && !node.is_draining) else { return };
        let good = node.ranks.iter().filter(|rank| rank.process != Process::Bad).count();
        let capacity = self.capacity.entry(node.facts.kind).or_default();
        *capacity = if is_in { *capacity + good } else { capacity.saturating_sub(good) };
    }

    pub(super) fn drain(&mut self, id: NodeId, is_draining: bool, now: Duration) -> Vec<Action> {
        let Some(node) = self.nodes.get(&id).filter(|node| node.is_up && node.is_draining != is_draining)
        else {
            return Vec::new();
        };
        let slots = node.facts.slots;
        if is_draining {
            self.count(id, false);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.is_draining = is_draining;
        }
        if !is_draining {
            self.count(id, true);
        }
        for rank in (0..slots).map(|slot| RankId { node: id, slot }) {
            self.set(rank, self.process(rank), now);
        }
        if is_draining { self.drained(id) } else { vec![Action::Grown] }
    }

    fn drained(&self, id: NodeId) -> Vec<Action> {
        let Some(node) = self.nodes.get(&id).filter(|node| node.is_draining) else { return Vec::new() };
        let is_busy = node.ranks.iter().any(|rank| matches!(rank.process, Process::Busy(..)));
        if is_busy { Vec::new() } else { vec![Action::Drained(id)] }
    }

    pub(super) fn exited(&mut self, rank: RankId, log: Vec<String>, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        let process = self.process(rank);
        if let Process::Busy(_, job) = process {
            actions.push(Action::Lost(rank, job, Cause::Exited(rank, log)));
        }
        let is_bad = !matches!(process, Process::Dying(_)) && self.death(rank, now);
        if is_bad {
            actions.extend(self.give_up(rank, now));
        } else {
            actions.extend(self.spawn(rank, now));
        }
        actions
    }

    pub(super) fn replace(&mut self, rank: RankId, now: Duration) -> Vec<Action> {
        let process = self.process(rank);
        let Some(start) = self.start(rank).filter(|_| !matches!(process, Process::Dying(_))) else {
            return Vec::new();
        };
        let is_bad = self.death(rank, now);
        let mut actions = self.kill(rank, start, now);
        if is_bad {
            actions.extend(self.give_up(rank, now));
        }
        actions
    }

    /// A device has failed once more. Whether that is too often.
    fn death(&mut self, rank: RankId, now: Duration) -> bool {
        let ProcessTimes { deaths_max, deaths_window, .. } = self.times;
        let Some(rank) = self.rank_mut(rank) else { return false };
        rank.deaths.retain(|at| now < *at + deaths_window);
        rank.deaths.push(now);
        rank.deaths.len() >= deaths_max
    }

    fn give_up(&mut self, rank: RankId, now: Duration) -> Vec<Action> {
        self.count(rank.node, false);
        self.set(rank, Process::Bad, now);
        self.count(rank.node, true);
        vec![Action::Bad(rank)]
    }

    fn spawn(&mut self, rank: RankId, now: Duration) -> Vec<Action> {
        let start = self.stamp();
        self.set(rank, Process::Spawning(start), now);
        vec![Action::Spawn(rank, start)]
    }

    pub(super) fn kill(&mut self, rank: RankId, start: Stamp, now: Duration) -> Vec<Action> {
        self.set(rank, Process::Dying(start), now);
        vec![Action::Kill(rank, start)]
    }

    pub(super) fn stop(&mut self, rank: RankId, start: Stamp, time: Duration, now: Duration) -> Vec<Action> {
        let stamp = self.stamp();
        self.set(rank, Process::Stopping(start, stamp, now + self.times.stop_max.max(time)), now);
        vec![Action::Abort(rank, start, stamp)]
    }

    pub(super) fn idle(&mut self, rank: RankId, start: Stamp, now: Duration) -> Vec<Action> {
        self.set(rank, Process::Idle(start), now);
        let mut actions = vec![Action::Ready(rank)];
        actions.extend(self.drained(rank.node));
        actions
    }

    /// Says again what has not been answered.
    pub(super) fn remind(&mut self, rank: RankId, now: Duration) -> Vec<Action> {
        let process = self.process(rank);
        if let Process::Stopping(start, _, until) = process
            && now >= until
        {
            return self.kill(rank, start, now);
        }
        self.set(rank, process, now);
        match process {
            Process::Spawning(start) => vec![Action::Spawn(rank, start)],
            Process::Stopping(start, stamp, _) => vec![Action::Abort(rank, start, stamp)],
            Process::Dying(start) => vec![Action::Kill(rank, start)],
            Process::Absent | Process::Idle(_) | Process::Busy(..) | Process::Bad => Vec::new(),
        }
    }

    fn rank_mut(&mut self, rank: RankId) -> Option<&mut Rank> {
        self.nodes.get_mut(&rank.node)?.ranks.get_mut(usize::from(rank.slot))
    }

    pub(super) fn set(&mut self, rank: RankId, process: Process, now: Duration) {
        let Some(node) = self.nodes.get_mut(&rank.node) else { return };
        let (kind, takes_work) = (node.facts.kind, !node.is_draining);
        let Some(place) = node.ranks.get_mut(usize::from(rank.slot)) else { return };
        place.process = process;
        self.free.set(kind, rank, takes_work && matches!(process, Process::Idle(_)));
        let again = now + self.times.resend;
        let remind = match process {
            Process::Spawning(_) | Process::Dying(_) => Some(again),
            Process::Stopping(_, _, until) => Some(again.min(until)),
            Process::Absent | Process::Idle(_) | Process::Busy(..) | Process::Bad => None,
        };
        self.timers.set(rank, remind);
    }
}
