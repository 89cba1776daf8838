//! Nodes, their leases and their processes.

use super::{Action, Duration, Facts, Head, NodeId, Order, Planner, lease};
use crate::logic::cluster::{epoch, job, registry};

impl<P: Planner> Head<P> {
    pub(super) fn hello(&mut self, node: NodeId, facts: Facts, now: Duration, out: &mut Vec<Action>) {
        let event = lease::HeadEvent::Joined { node, incarnation: facts.incarnation };
        for action in self.leases.handle(event, now) {
            match action {
                lease::HeadAction::Admit { node, is_restart } => {
                    out.push(Action::Welcome(node));
                    self.on_registry(registry::Event::Up(node, facts.clone(), is_restart), now, out);
                }
                lease::HeadAction::Refuse { node, incarnation, .. } => {
                    out.push(Action::RefuseNode(node, incarnation));
                }
                lease::HeadAction::Grant { .. } | lease::HeadAction::Expired(_) => {}
            }
        }
    }

    pub(super) fn on_leases(&mut self, event: lease::HeadEvent, now: Duration, out: &mut Vec<Action>) {
        for action in self.leases.handle(event, now) {
            match action {
                lease::HeadAction::Grant { node, seq } => {
                    out.push(Action::Grant { node, seq, ttl: self.times.lease.ttl });
                }
                lease::HeadAction::Refuse { node, incarnation, .. } => {
                    out.push(Action::RefuseNode(node, incarnation));
                }
                lease::HeadAction::Expired(node) => {
                    out.push(Action::Disconnect(node));
                    self.on_registry(registry::Event::Down(node), now, out);
                }
                lease::HeadAction::Admit { .. } => {}
            }
        }
    }

    pub(super) fn on_registry(&mut self, event: registry::Event, now: Duration, out: &mut Vec<Action>) {
        for action in self.registry.handle(event, now) {
            match action {
                registry::Action::Spawn(rank, start) => out.push(Action::Spawn(rank, start)),
                registry::Action::Kill(rank, start) => out.push(Action::Kill(rank, start)),
                registry::Action::Abort(rank, start, stamp) => {
                    out.push(Action::Order(rank, start, stamp, Order::Abort));
                }
                registry::Action::Lost(rank, id, cause) => {
                    let Some(job) = self.jobs.get_mut(&id) else { continue };
                    if job.is_mending() {
                        let actions = job.handle_kept_lost(rank, now);
                        self.carry_out(id, actions, now, out);
                    } else if let Some(stamp) = job.epoch().map(|epoch| epoch.stamp) {
                        let event = job::Event::Epoch(stamp, epoch::Event::Gone(rank, cause));
                        self.on_job(id, event, now, out);
                    }
                }
                registry::Action::Ready(rank) => self.ready(rank, now, out),
                registry::Action::Grown => {
                    self.queue.handle(super::super::queue::Event::Grown);
                    self.may_place = true;
                }
                registry::Action::Drained(node) => out.push(Action::Drained(node)),
                registry::Action::Bad(rank) => out.push(Action::Bad(rank)),
            }
        }
    }
}
