//! One attempt at a job, as a rank has it.

use super::super::job::JobBody;
use super::super::protocol::{RankSetup, RankTeam};
use super::told::Stop;
use crate::logic::cluster::Stamp;
use crate::logic::cluster::epoch::Trouble;
use dg_comm::Communicator;
use dg_flux::ModelRepo;
use dg_net::plane::{Listener, Member};
use dg_plan::Plan;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

pub(super) struct Attempt {
    pub(super) epoch: Stamp,
    pub(super) team: RankTeam,
    pub(super) body: JobBody,
    pub(super) plan: Arc<Plan>,
    pub(super) stop: Stop,
    pub(super) listeners: Vec<Listener>,
    /// Where the others find this rank.
    pub(super) member: Member,
    pub(super) comm: Option<Arc<dyn Communicator>>,
}

impl Attempt {
    /// Plans it, compares the model, and listens for the other ranks.
    pub(super) fn new(
        epoch: Stamp,
        team: RankTeam,
        body: JobBody,
        stop: Stop,
        repo: &ModelRepo,
        setup: &RankSetup,
    ) -> Result<Self, Trouble> {
        let have = &repo.id().hash;
        if let Some(wanted) = body.model_hash.as_ref().filter(|wanted| *wanted != have) {
            let text = format!("the model {} has the hash {have:.12}…, wanted {wanted:.12}…", repo.id().id);
            return Err(Trouble::Error(text));
        }
        if let Some(fault) = body.fault() {
            return Err(Trouble::Error(fault.to_string()));
        }
        let plan = body.plan(repo.shape(), team.layout).map_err(|e| Trouble::Error(e.to_string()))?;
        let is_sane = |me: u32| (me as usize) < team.numbers.len() && team.numbers.len() == team.nodes.len();
        if !is_sane(team.me) || u64::try_from(team.numbers.len()) != Ok(plan.layout.ranks()) {
            return Err(Trouble::Error("a team that does not fit its layout".into()));
        }
        let listeners = listen(&team, setup)?;
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        let member = Member { host: setup.node.clone(), addresses };
        Ok(Self { epoch, team, body, plan: Arc::new(plan), stop, listeners, member, comm: None })
    }

    /// What a loaded engine must have in common with this attempt to be used for it.
    pub(super) fn engine_key(&self) -> String {
        let (plan, me) = (&self.plan, self.team.me);
        let stage = plan.stages.ranges().get(plan.layout.coords(me).pp as usize).cloned();
        let (encodes, decodes) = (plan.encoder_rank(me) == me, plan.decoder_rank(me) == me);
        let JobBody { model, dtype, time_dtype, vae_tiling, .. } = &self.body;
        format!("{model:?} {stage:?} {encodes} {decodes} {dtype:?} {time_dtype:?} {vae_tiling:?}")
    }

    /// What the ranks are called.
    pub(super) fn names(&self) -> Vec<String> {
        let ranks = self.team.numbers.iter().zip(&self.team.nodes);
        ranks.map(|(number, node)| format!("rank {number} (node {node})")).collect()
    }
}

impl Drop for Attempt {
    /// The group ends here, in the thread that computes, which may wait for what a device has to finish. The actor, which
    /// has it for stopping, must not.
    fn drop(&mut self) {
        self.stop.left();
    }
}

/// A unix socket for ranks of the same node, TCP for others; none for a rank that has nobody above it.
fn listen(team: &RankTeam, setup: &RankSetup) -> Result<Vec<Listener>, Trouble> {
    let failed = |e: dg_net::plane::SetUpError| Trouble::Error(e.to_string());
    let above = team.nodes.iter().skip(team.me as usize + 1);
    let (near, far): (Vec<_>, Vec<_>) = above.partition(|node| **node == setup.node);
    let mut listeners = Vec::new();
    if !near.is_empty() {
        listeners.push(Listener::abstract_unix().map_err(failed)?);
    }
    if !far.is_empty() {
        let at = address(setup)?;
        let listener = if setup.tensor_tls {
            Listener::tls(at, format!("{}.dg-cluster", setup.node))
        } else {
            Listener::tcp(at)
        };
        listeners.push(listener.map_err(failed)?);
    }
    Ok(listeners)
}

/// The address of this node at which ranks listen.
fn address(setup: &RankSetup) -> Result<SocketAddr, Trouble> {
    let found = (setup.plane_host.as_str(), 0).to_socket_addrs();
    let found = found.map(|mut all| all.next()).map_err(|e| e.to_string());
    let none = |what: String| Trouble::Error(format!("the node's address `{}`: {what}", setup.plane_host));
    found.map_err(none)?.ok_or_else(|| none("no such host".into()))
}
