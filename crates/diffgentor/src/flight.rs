//! Jobs in flight. Each is followed by a task of its own, so that no job's events wait behind another's.

use crate::engine::{Canceller, Cluster, Job, Picture};
use crate::failure::Failure;
use dg_core::{GenerateRequest, StepEvent};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// News of a batch.
pub(crate) enum Told {
    /// Something happened in it.
    Event(usize, StepEvent),
    /// It has ended, after this many seconds of work.
    Ended(usize, Result<Vec<Picture>, Failure>, f64),
}

/// The jobs of a cluster that have not ended. Dropping it cancels them.
pub(crate) struct Flight<'a> {
    cluster: &'a Cluster,
    jobs: BTreeMap<usize, Canceller>,
    tell: UnboundedSender<Told>,
    told: UnboundedReceiver<Told>,
    tasks: JoinSet<()>,
}

impl<'a> Flight<'a> {
    /// Nothing is in flight.
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        let (tell, told) = unbounded_channel();
        Self { cluster, jobs: BTreeMap::new(), tell, told, tasks: JoinSet::new() }
    }

    /// Whether no more should be handed in: every replica has a job, and one to go on with while it decodes.
    pub(crate) fn is_full(&self) -> bool {
        self.jobs.len() >= JOBS_PER_REPLICA * self.cluster.replicas()
    }

    /// Whether a replica is free for another job.
    pub(crate) fn is_free(&self) -> bool {
        self.jobs.len() < self.cluster.replicas()
    }

    /// Hands in a batch.
    pub(crate) fn submit(&mut self, batch: usize, requests: Vec<GenerateRequest>) {
        let job = self.cluster.submit(requests);
        self.jobs.insert(batch, job.canceller());
        self.tasks.spawn(follow(batch, job, self.tell.clone()));
    }

    /// Waits for news; `None` when nothing is in flight.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        if self.jobs.is_empty() {
            return None;
        }
        let told = self.told.recv().await?;
        if let Told::Ended(batch, ..) = &told {
            self.jobs.remove(batch);
            // tasks that are done
            while self.tasks.try_join_next().is_some() {}
        }
        Some(told)
    }

    /// Cancels all jobs.
    pub(crate) fn cancel(&self) {
        self.jobs.values().for_each(Canceller::cancel);
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.cancel();
    }
}

async fn follow(batch: usize, mut job: Job, tell: UnboundedSender<Told>) {
    // a job may wait for its replica first: it begins where its text encoding does
    let mut began = Instant::now();
    while let Some(event) = job.next_event().await {
        if let StepEvent::TextEncoded { seconds, .. } = &event {
            let took = Duration::try_from_secs_f64(*seconds).unwrap_or_default();
            began = Instant::now().checked_sub(took).unwrap_or(began).max(began);
        }
        if tell.send(Told::Event(batch, event)).is_err() {
            return;
        }
    }
    let outcome = job.finish().await.map_err(Failure::from);
    if tell.send(Told::Ended(batch, outcome, began.elapsed().as_secs_f64())).is_err() {
        tracing::debug!("nobody waits for batch {batch}");
    }
}

/// Jobs in flight for every replica.
const JOBS_PER_REPLICA: usize = 2;
