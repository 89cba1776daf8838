//! Jobs and the ranks that they get.

use super::{Action, Duration, Head, Job, JobId, JobSpec, Planner, RankId, Refusal};
use crate::logic::cluster::epoch::{State, Team};
use crate::logic::cluster::job::{self, Event, Loss, Prices};
use crate::logic::cluster::placement::Kind;
use crate::logic::cluster::planner::{Choice, Supply};
use crate::logic::cluster::registry::{self, Registry, Tier};
use crate::logic::cluster::{NodeId, queue};

impl<P: Planner> Head<P> {
    pub(super) fn submit(&mut self, id: JobId, spec: JobSpec, now: Duration, out: &mut Vec<Action>) {
        if self.latest.is_some_and(|latest| id <= latest) {
            return;
        }
        self.latest = Some(id);
        if let Some(node) = self.registry.lacks(spec.model) {
            out.push(Action::Refuse(id, Refusal::NoModel(node)));
            return;
        }
        let event = queue::Event::Submitted { job: id, client: spec.client, priority: spec.priority };
        if !self.queue.handle(event).is_empty() {
            out.push(Action::Refuse(id, Refusal::Full));
            return;
        }
        let job = Job::new(spec, self.times.epoch, self.times.patience, now);
        self.job_timers.set(id, job.next());
        self.jobs.insert(id, job);
        self.may_place = true;
    }

    pub(super) fn on_job(&mut self, id: JobId, event: Event, now: Duration, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (spec, limit) = (job.spec.clone(), job.memory_bytes);
        let (registry, planner, respawn) = (&self.registry, &self.planner, self.times.respawn);
        let prices = |loss: &Loss| prices(registry, planner, &spec, limit, respawn, loss);
        let actions = job.handle(event, now, &prices);
        self.carry_out(id, actions, now, out);
    }

    pub(super) fn carry_out(
        &mut self,
        id: JobId,
        actions: Vec<job::Action>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let stop_time = self.jobs.get(&id).map(Job::stop_time).unwrap_or_default();
        for action in actions {
            match action {
                job::Action::Send(rank, epoch, order) => {
                    if let Some(start) = self.registry.start(rank) {
                        out.push(Action::Order(rank, start, epoch, order));
                    }
                }
                job::Action::Release(rank, State::Stopped) => {
                    self.on_registry(registry::Event::Free(rank), now, out);
                }
                job::Action::Release(rank, State::Working | State::Answered) => {
                    self.on_registry(registry::Event::Stop(rank, stop_time), now, out);
                }
                job::Action::Release(_, State::Gone) => {}
                job::Action::Resumed(epoch, step) => out.push(Action::Resumed(id, epoch, step)),
                job::Action::Kept(epoch, step) => out.push(Action::Kept(id, epoch, step)),
                job::Action::Await(rank) => {
                    self.awaited.insert(rank, id);
                }
                job::Action::Replace(rank) => self.on_registry(registry::Event::Replace(rank), now, out),
                job::Action::Requeue => {
                    self.awaited.retain(|_, waiting| *waiting != id);
                    self.queue.handle(queue::Event::Returned(id));
                    self.may_place = true;
                }
                job::Action::End(end) => {
                    self.awaited.retain(|_, waiting| *waiting != id);
                    self.queue.handle(queue::Event::Ended(id));
                    self.jobs.remove(&id);
                    self.may_place = true;
                    out.push(Action::Finish(id, end));
                }
            }
        }
        let next = self.jobs.get(&id).and_then(Job::next);
        self.job_timers.set(id, next);
    }

    /// A rank has nothing to do: a job may have waited for this one.
    pub(super) fn ready(&mut self, rank: RankId, now: Duration, out: &mut Vec<Action>) {
        self.may_place = true;
        let Some(id) = self.awaited.remove(&rank) else { return };
        self.registry.handle(registry::Event::Take(rank, id), now);
        let stamp = self.registry.stamp();
        self.on_job(id, Event::Back(stamp, rank), now, out);
    }

    /// Starts jobs, in order, while there are ranks for the next one.
    pub(super) fn place(&mut self, now: Duration, out: &mut Vec<Action>) {
        // Jobs that wait for one kind of ranks do not hold up those for another.
        let mut full = Vec::new();
        while let Some((id, kind)) = self.next(&full) {
            let Some(job) = self.jobs.get(&id) else {
                self.queue.handle(queue::Event::Ended(id));
                continue;
            };
            let (free, all) = (self.registry.free().count(kind), self.registry.capacity(kind));
            // Ranks that are busy now are waited for; one that goes on takes what is left of those that it had.
            let wanted = if job.has_begun() { 1 } else { job.spec.ranks_max.min(all) };
            let is_worth_it = free >= job.spec.ranks_min.max(wanted).max(1);
            let found = is_worth_it.then(|| self.find(&job.spec, job.memory_bytes, kind)).flatten();
            match found {
                Some((choice, ranks)) => self.start(id, choice, ranks, now, out),
                // With more free it could start: it is its turn, and the others wait.
                None if free < all && all >= job.spec.ranks_min => full.push(kind),
                None => {
                    self.queue.handle(queue::Event::Parked(id));
                    self.out_of_memory(id, is_worth_it, now, out);
                }
            }
        }
    }

    /// The next job that is not for a kind of ranks of which too few are free.
    fn next(&self, full: &[Kind]) -> Option<(JobId, Kind)> {
        let has_no_more = |kind: &Kind| full.contains(kind) || self.registry.capacity(*kind) == 0;
        if !full.is_empty() && KINDS.iter().all(has_no_more) {
            return None;
        }
        let of = |id: JobId| kind(&self.registry, self.jobs.get(&id).and_then(|job| job.spec.kind));
        self.queue.next(|id| !full.contains(&of(id))).map(|id| (id, of(id)))
    }

    /// The layout that the job asks for if there is a tier of nodes with ranks enough for it, else the fastest; of
    /// several tiers the first that is as fast.
    fn find(&self, spec: &JobSpec, limit: Option<u64>, kind: Kind) -> Option<(Choice, Vec<RankId>)> {
        let tiers = self.registry.tiers(kind).iter();
        let found = tiers.filter_map(|tier| self.find_in(*tier, spec, limit, kind));
        let asked = spec.ask.as_ref().map(|ask| ask.layout);
        let is_other = |choice: &Choice| asked.is_some_and(|asked| asked != choice.layout);
        found.min_by_key(|(choice, _)| (is_other(choice), choice.is_streamed, choice.run))
    }

    fn find_in(
        &self,
        tier: Tier,
        spec: &JobSpec,
        limit: Option<u64>,
        kind: Kind,
    ) -> Option<(Choice, Vec<RankId>)> {
        let has_model = |node: NodeId| {
            let node = self.registry.node(node);
            node.is_some_and(|node| node.facts.models.contains(&spec.model) && tier.has(&node.facts))
        };
        let free = self.registry.free();
        let all = free.pick(kind, spec.ranks_max, 1, &has_model);
        if all.len() < spec.ranks_min.max(1) {
            return None;
        }
        let choice = self.planner.choose(spec, supply(&self.registry, &all, limit))?;
        let ranks = usize::try_from(choice.layout.ranks()).ok().filter(|ranks| *ranks <= all.len())?;
        let grouped = free.pick(kind, ranks, choice.layout.ulysses as usize, &has_model);
        let mut picked = if grouped.len() == ranks { grouped } else { all.into_iter().take(ranks).collect() };
        // As users count them; each node has whole groups all the same.
        picked.sort_unstable();
        Some((choice, picked))
    }

    fn start(
        &mut self,
        id: JobId,
        choice: Choice,
        members: Vec<RankId>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        self.queue.handle(queue::Event::Started(id));
        for rank in &members {
            self.registry.handle(registry::Event::Take(*rank, id), now);
        }
        let stamp = self.registry.stamp();
        let steps = self.jobs.get(&id).map_or(0, |job| job.spec.steps);
        let team = Team { job: id, members, layout: choice.layout, steps };
        self.on_job(id, Event::Place(stamp, team, choice.memory_bytes), now, out);
    }

    /// A job that once ran out of memory and finds no layout with all ranks free will find none later.
    fn out_of_memory(&mut self, id: JobId, had_ranks: bool, now: Duration, out: &mut Vec<Action>) {
        let is_short = self.jobs.get(&id).is_some_and(|job| job.memory_bytes.is_some());
        if had_ranks && is_short {
            self.on_job(id, Event::NoLayout, now, out);
        }
    }
}

/// What may be used: what is asked for, else CUDA devices if there are any.
fn kind(registry: &Registry, asked: Option<Kind>) -> Kind {
    asked.unwrap_or_else(|| if registry.capacity(Kind::Cuda) > 0 { Kind::Cuda } else { Kind::Cpu })
}

fn supply(registry: &Registry, ranks: &[RankId], limit: Option<u64>) -> Supply {
    let memory = |rank: &RankId| registry.node(rank.node).map(|node| node.facts.memory_bytes);
    let memory = ranks.iter().filter_map(memory).min().unwrap_or(0);
    let flops = |rank: &RankId| registry.node(rank.node).map(|node| node.facts.flops);
    let is_cpu = |rank: &RankId| registry.node(rank.node).is_some_and(|node| node.facts.kind == Kind::Cpu);
    Supply {
        ranks: ranks.len(),
        memory_bytes: limit.map_or(memory, |limit| limit.min(memory)),
        flops: ranks.iter().filter_map(flops).min().unwrap_or(0),
        streams: ranks.iter().all(is_cpu),
    }
}

/// The time until a job is done that has lost ranks, either way.
fn prices<P: Planner>(
    registry: &Registry,
    planner: &P,
    spec: &JobSpec,
    limit: Option<u64>,
    respawn: Duration,
    loss: &Loss,
) -> Prices {
    let share = |run: Duration| run * loss.steps_left / spec.steps.max(1);
    let whole: Vec<RankId> = loss.left.iter().chain(&loss.lost).copied().collect();
    let comes_back = |rank: &RankId| registry.start(*rank).is_some();
    let again = || {
        if !loss.lost.iter().all(comes_back) {
            return None;
        }
        let ranks = JobSpec { ranks_min: whole.len(), ranks_max: whole.len(), ..spec.clone() };
        planner.choose(&ranks, supply(registry, &whole, limit))
    };
    // One replica is of one kind: ranks that are left are joined by their like.
    let of_left = loss.left.first().and_then(|rank| Some(registry.node(rank.node)?.facts.kind));
    let kind = of_left.unwrap_or_else(|| kind(registry, spec.kind));
    let mut ranks = registry.free().pick(kind, spec.ranks_max.saturating_sub(loss.left.len()), 1, &|_| true);
    ranks.extend(&loss.left);
    let enough = ranks.len() >= spec.ranks_min.max(1);
    let less = enough.then(|| planner.choose(spec, supply(registry, &ranks, limit))).flatten();
    let again = again();
    // Predictions are compared with each other, and with the clock: what the clock has shown sets their scale.
    let predicted = again.as_ref().map(|choice| choice.run / spec.steps.max(1));
    let scale = match (loss.step, predicted) {
        (Some(seen), Some(predicted)) if !predicted.is_zero() => seen.as_secs_f64() / predicted.as_secs_f64(),
        _ => 1.0,
    };
    let share = |run: Duration| share(run).mul_f64(scale.min(SCALE_MAX));
    Prices {
        respawn: again.map(|choice| respawn + share(choice.run)),
        respawn_wait: respawn,
        replan: less.map(|choice| share(choice.run)),
    }
}

/// All kinds of ranks.
const KINDS: [Kind; 2] = [Kind::Cpu, Kind::Cuda];
/// No prediction is that wrong.
const SCALE_MAX: f64 = 1e6;
