//! Between stages, and between the branches of true CFG.

use super::units::Unit;
use super::{RankJob, wire};
use crate::transformer::Hidden;
use burn::tensor::{Device, Tensor};
use dg_comm::{Call, Class, CommError, Communicator, Tag};
use dg_kernels::Precision;
use dg_plan::{Coords, Dim};

/// One rank's connections to the ranks with the same tokens: the stages before and after it, and the other branch.
pub(super) struct Edges<'a> {
    pub(super) job: &'a RankJob,
    pub(super) at: Coords,
    pub(super) precision: Precision,
    pub(super) device: &'a Device,
}

impl Edges<'_> {
    /// Hands the tokens of a pass to the next stage.
    pub(super) fn send_hidden(
        &self,
        step: usize,
        unit: &Unit,
        branch: usize,
        h: Hidden,
    ) -> Result<(), CommError> {
        let next = self.peer(Dim::Pp, self.at.pp + 1);
        self.send(next, Class::PipeHidden, (step, unit, branch), h.image)?;
        self.send(next, Class::PipeText, (step, unit, branch), h.text)
    }

    /// Takes `text` and `image` tokens of width `d` from the stage before.
    pub(super) fn recv_hidden(
        &self,
        step: usize,
        unit: &Unit,
        branch: usize,
        [text, image, d]: [usize; 3],
    ) -> Result<Hidden, CommError> {
        let (before, b) = (self.peer(Dim::Pp, self.at.pp - 1), unit.images.len());
        Ok(Hidden {
            image: self.recv(before, Class::PipeHidden, (step, unit, branch), [b, image, d])?,
            text: self.recv(before, Class::PipeText, (step, unit, branch), [b, text, d])?,
        })
    }

    /// Hands new latents from the last stage to the first.
    pub(super) fn send_latents(&self, step: usize, unit: &Unit, x: Tensor<3>) -> Result<(), CommError> {
        self.send(self.peer(Dim::Pp, 0), Class::PipeLatents, (step, unit, 0), x)
    }

    /// Takes the new latents of a unit, `[b, n, c]`, on the first stage.
    pub(super) fn recv_latents(
        &self,
        step: usize,
        unit: &Unit,
        dims: [usize; 3],
    ) -> Result<Tensor<3>, CommError> {
        self.recv(self.peer(Dim::Pp, self.job.plan.layout.pp - 1), Class::PipeLatents, (step, unit, 0), dims)
    }

    /// The prediction of the other branch for that of this one.
    pub(super) fn exchange_noise(
        &self,
        step: usize,
        unit: &Unit,
        own: &Tensor<3>,
    ) -> Result<Tensor<3>, CommError> {
        let (other, of) = (self.peer(Dim::Cfg, 1 - self.at.cfg), (step, unit, 0));
        self.send(other, Class::CfgNoise, of, own.clone())?;
        self.recv(other, Class::CfgNoise, of, own.dims())
    }

    fn peer(&self, dim: Dim, place: u32) -> usize {
        self.job.plan.layout.rank(self.at.with(dim, place)) as usize
    }

    fn call(&self, class: Class, (step, unit, branch): (usize, &Unit, usize)) -> Call {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let tag = Tag::new(self.job.request).step(number(step)).patch(number(unit.patch.unwrap_or(0)));
        Call::within(self.job.patience, class, tag.kind(number(2 * unit.images.start + branch)))
    }

    /// Empty messages do not travel.
    fn send(
        &self,
        to: usize,
        class: Class,
        of: (usize, &Unit, usize),
        t: Tensor<3>,
    ) -> Result<(), CommError> {
        if t.dims()[1] == 0 {
            return Ok(());
        }
        let call = self.call(class, of);
        self.job.comm.send(to, &call, wire::pack(t, self.precision, &call)?)
    }

    fn recv(
        &self,
        from: usize,
        class: Class,
        of: (usize, &Unit, usize),
        dims: [usize; 3],
    ) -> Result<Tensor<3>, CommError> {
        if dims[1] == 0 {
            return Ok(dg_kernels::from_vec(Vec::new(), dims, self.device));
        }
        let call = self.call(class, of);
        let block = self.job.comm.recv(from, &call, wire::shape(dims, self.precision))?;
        wire::unpack(&block, dims, &call)
    }
}
