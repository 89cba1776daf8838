//! The thread of a rank: opens and loads models, joins groups, computes.

use super::super::job::{self, RankDone};
use super::super::protocol::{RankSay, RankSetup};
use super::attempt::Attempt;
use super::device::RankDevice;
use super::fault;
use super::{Arguments, Message, Work};
use crate::failpoint::Failpoint;
use crate::fleet::OpenModel;
use crate::logic::cluster::Stamp;
use crate::logic::cluster::epoch::Trouble;
use crate::memory::{Others, ProcessMemory, Sampler};
use bytes::Bytes;
use dg_core::StepEvent;
use dg_core::report::RankReport;
use dg_flux::parallel::{LatentsPart, RankJob, Resume};
use dg_flux::watch::Watch;
use dg_flux::{DeviceKind, FreeMemory, ModelRepo, Picture, Pipeline, PipelineOptions, RunError};
use dg_net::plane::{EpochKey, Member, Options, Rendezvous, Tls};
use dg_plan::Plan;
use rayon::ThreadPool;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Tells the actor.
pub(super) type Tell = Arc<dyn Fn(Message) + Send + Sync>;

/// The thread's own.
struct Computer {
    setup: RankSetup,
    open: OpenModel,
    failpoint: Option<Failpoint>,
    tls: Option<Tls>,
    pool: ThreadPool,
    tell: Tell,
    /// From the first job on.
    device: Option<RankDevice>,
    /// Bytes that the last attempt is planned to take.
    need: u64,
    /// What the process had had read from disks when that attempt began.
    read_before: u64,
    model: Option<(String, Arc<ModelRepo>)>,
    engine: Option<(String, Pipeline)>,
    attempt: Option<Attempt>,
}

/// Starts the thread.
pub(super) fn start(args: Arguments, tell: Tell) -> Result<Sender<Work>, String> {
    let Arguments { setup, open, failpoint, .. } = args;
    let tls = if setup.tensor_tls { Some(tls(&setup)?) } else { None };
    let threads = setup.threads.max(1) as usize;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string())?;
    let (sender, work) = channel();
    let mut computer = Computer {
        setup,
        open,
        failpoint,
        tls,
        pool,
        tell,
        device: None,
        need: 0,
        read_before: 0,
        model: None,
        engine: None,
        attempt: None,
    };
    let thread = std::thread::Builder::new().name("dg-compute".into());
    thread.spawn(move || computer.live(&work)).map_err(|e| e.to_string())?;
    Ok(sender)
}

fn tls(setup: &RankSetup) -> Result<Tls, String> {
    let state = dg_net::identity::State::open(&setup.state_dir).map_err(|e| e.to_string())?;
    let name = dg_net::identity::Name::parse(&setup.node).map_err(|e| e.to_string())?;
    Tls::of(&state.load(&name).map_err(|e| e.to_string())?)
}

impl Computer {
    fn live(&mut self, work: &Receiver<Work>) {
        for work in work {
            let epoch = match &work {
                Work::Prepare(epoch, ..) | Work::Group(epoch, ..) | Work::Run(epoch, ..) => *epoch,
            };
            let done = catch_unwind(AssertUnwindSafe(|| self.one(work)));
            let (say, body) = done.unwrap_or_else(|panic| {
                // The model may be in any state.
                (self.engine, self.attempt) = (None, None);
                let text = format!("it panicked: {}", crate::compute::message(&*panic));
                tracing::error!("{text}");
                (RankSay::Failed(fault::trouble(kind(&self.setup), self.need, text)), Bytes::new())
            });
            if matches!(say, RankSay::Failed(_) | RankSay::Done) {
                self.attempt = None;
            }
            (self.tell)(Message::Ended(epoch, say, body));
        }
    }

    fn one(&mut self, work: Work) -> (RankSay, Bytes) {
        let outcome = match work {
            Work::Prepare(epoch, team, body, stop) => {
                self.read_before = crate::memory::read_bytes();
                let prepared = self.open_model(body.model.clone().or_else(|| self.setup.model.clone()));
                let prepared = prepared.and_then(|repo| {
                    let attempt = Attempt::new(epoch, team, *body, stop, &repo, &self.setup)?;
                    self.prepare(&repo, attempt)
                });
                prepared.map(|say| (say, Bytes::new()))
            }
            Work::Group(epoch, key, members) => {
                self.group(epoch, key, members).map(|()| (RankSay::Grouped, Bytes::new()))
            }
            Work::Run(epoch, from_step, latents) => self.run(epoch, from_step, &latents),
        };
        outcome.unwrap_or_else(|trouble| (RankSay::Failed(trouble), Bytes::new()))
    }

    fn open_model(&mut self, name: Option<String>) -> Result<Arc<ModelRepo>, Trouble> {
        let name = name.ok_or_else(|| Trouble::Error("neither the job nor the file names a model".into()))?;
        match &self.model {
            Some((have, repo)) if *have == name => Ok(repo.clone()),
            _ => {
                (self.model, self.engine) = (None, None);
                let repo = Arc::new((self.open)(&name).map_err(Trouble::Error)?);
                self.model = Some((name, repo.clone()));
                Ok(repo)
            }
        }
    }

    /// Loads what this rank needs, unless the last job left it.
    fn prepare(&mut self, repo: &Arc<ModelRepo>, attempt: Attempt) -> Result<RankSay, Trouble> {
        if dg_nccl::nccl::is_stuck() {
            // The head has this process ended and another one started.
            return Err(Trouble::DeviceLost);
        }
        dg_flux::allow_tf32(attempt.body.tf32);
        let key = attempt.engine_key();
        let memory = attempt.plan.memory(attempt.team.me);
        self.need = memory.resident_least();
        let device = match &mut self.device {
            Some(device) => device,
            none => none.insert(RankDevice::open(kind(&self.setup)).map_err(Trouble::Error)?),
        };
        if self.engine.as_ref().is_none_or(|(have, _)| *have != key) {
            self.engine = None;
            if let Some(free) = device.free_bytes().filter(|free| *free < self.need) {
                tracing::warn!(need = self.need, free, "the GPU has too little memory");
                return Err(Trouble::Oom { need: self.need, free: Some(free) });
            }
            let others = others(&attempt.plan, attempt.team.me, self.setup.ranks.into());
            let weights_memory = crate::memory::share(device.kind, others);
            let share = weights_memory.as_ref().and_then(FreeMemory::ask);
            let options = PipelineOptions {
                device: device.tensors.clone(),
                dtype: attempt.body.dtype,
                time_dtype: attempt.body.time_dtype,
                vae_tiling: attempt.body.vae_tiling,
                release_encoders: share.is_some_and(|share| share < memory.total()),
                free_memory: crate::memory::free(device.kind, &device.tensors),
                weights_memory,
            };
            let load = || Pipeline::load_rank(repo, options, &attempt.plan, attempt.team.me);
            let loaded = self.pool.install(load);
            let loaded = loaded.map_err(|error| {
                tracing::warn!(%error, "the model cannot be loaded");
                fault::trouble(device.kind, self.need, error.to_string())
            })?;
            self.engine = Some((key, loaded));
        }
        let mapped_bytes = self.engine.as_ref().map_or(0, |(_, engine)| engine.mapped_bytes());
        let member = attempt.member.clone();
        self.attempt = Some(attempt);
        Ok(RankSay::Prepared { member, mapped_bytes })
    }

    fn group(&mut self, epoch: Stamp, key: EpochKey, members: Vec<Member>) -> Result<(), Trouble> {
        let attempt = current(&mut self.attempt, epoch)?;
        let me = attempt.team.me as usize;
        let rendezvous = Rendezvous { epoch: (epoch.term << 40) | epoch.number, key, members, me };
        let options = Options {
            names: attempt.names(),
            set_up_max: SET_UP_MAX,
            tls: self.tls.clone(),
            stop: attempt.stop.flag.clone(),
            ..Options::default()
        };
        let listeners = std::mem::take(&mut attempt.listeners);
        let connected = rendezvous.connect(listeners, options);
        let mut comm: Arc<dyn dg_comm::Communicator> =
            Arc::new(connected.map_err(|e| Trouble::Error(format!("no group: {e}")))?);
        // From here on an order to stop reaches it.
        attempt.stop.connected(comm.clone());
        if let Some(device) = &self.device {
            let no_group = |e: dg_comm::CommError| Trouble::Error(format!("no group: {e}"));
            comm = device.join(comm).map_err(no_group)?;
            attempt.stop.connected(comm.clone());
        }
        attempt.comm = Some(comm);
        Ok(())
    }

    fn run(&mut self, epoch: Stamp, from_step: u32, latents: &Bytes) -> Result<(RankSay, Bytes), Trouble> {
        let Self { setup, failpoint, pool, tell, need, engine, attempt, read_before, .. } = self;
        let attempt = current(attempt, epoch)?;
        let broken = || Trouble::Error("it was told to run before it was ready".into());
        let (Some((_, engine)), Some(comm)) = (engine, attempt.comm.take()) else { return Err(broken()) };
        let resume = match from_step {
            0 => None,
            step => {
                let latents = job::bytes_to_floats(latents).ok_or_else(broken)?;
                Some(Arc::new(Resume { step: step as usize, latents }))
            }
        };
        let patience = crate::cluster::PATIENCE;
        let job = RankJob { plan: attempt.plan.clone(), comm, request: attempt.team.job, patience, resume };
        let (number, spoke_at) = (setup.number as usize, Cell::new(Instant::now()));
        let mut watch = Reporter { attempt, tell, failpoint: *failpoint, number, spoke_at };
        watch.fail_at(from_step as usize);
        let (start, batch) = (Instant::now(), &attempt.body.batch);
        let sampler = Sampler::start();
        let ran = pool.install(|| connected(engine, batch, &job, &mut watch));
        let held = Held {
            mapped_bytes: engine.mapped_bytes(),
            memory: sampler.map_or_else(|| ProcessMemory::of(None), Sampler::finish),
            read_bytes: crate::memory::read_bytes().saturating_sub(*read_before),
        };
        let report = report(setup, attempt, &job, held, start.elapsed());
        match ran {
            Ok(pictures) => Ok((RankSay::Done, RankDone::pack(report, &pictures.unwrap_or_default()))),
            Err(error) => {
                if !attempt.stop.is_set() {
                    tracing::warn!(%error, job = attempt.team.job, "a job ends early");
                }
                Err(fault::of_run(kind(setup), *need, attempt.team.me as usize, &error))
            }
        }
    }
}

/// What the other ranks of a host with `here` ranks hold. Ranks of one stage use the same pages of the same files.
fn others(plan: &Plan, me: u32, here: u64) -> Others {
    let memory = plan.memory(me);
    let stage = |rank: u32| plan.layout.coords(rank).pp;
    let all: BTreeMap<u32, u64> =
        (0..plan.ranks()).map(|rank| (stage(rank), plan.memory(rank).transformer)).collect();
    let mine = all.get(&stage(me)).copied().unwrap_or(0);
    let (foreign, stages) = (all.values().sum::<u64>() - mine, all.len() as u64);
    // which stages are here is known if all are
    let here = here.max(1);
    let foreign = foreign / (stages - 1).max(1) * (here.min(stages) - 1);
    let each = memory.kv_buffers + memory.activations_least;
    Others { ranks: here - 1, each, weights: mine + foreign, mine }
}

fn kind(setup: &RankSetup) -> DeviceKind {
    if setup.gpu.is_some() { DeviceKind::Cuda } else { DeviceKind::Cpu }
}

fn current(attempt: &mut Option<Attempt>, epoch: Stamp) -> Result<&mut Attempt, Trouble> {
    let current = attempt.as_mut().filter(|attempt| attempt.epoch == epoch);
    current.ok_or_else(|| Trouble::Error("it was not prepared for this attempt".into()))
}

/// Computes and finishes; if that fails, the other ranks hear why.
fn connected(
    engine: &mut Pipeline,
    batch: &[dg_core::GenerateRequest],
    job: &RankJob,
    watch: &mut dyn Watch,
) -> Result<Option<Vec<Picture>>, RunError> {
    let pictures = engine.generate_on(batch, job, watch).and_then(|pictures| {
        job.comm.finish()?;
        Ok(pictures)
    });
    pictures.inspect_err(|error| job.comm.abort(&error.to_string()))
}

/// Memory of a rank in a job.
struct Held {
    mapped_bytes: u64,
    memory: ProcessMemory,
    /// From disks, since the job was prepared.
    read_bytes: u64,
}

fn report(
    setup: &RankSetup,
    attempt: &Attempt,
    job: &RankJob,
    Held { mapped_bytes, memory, read_bytes }: Held,
    wall: Duration,
) -> RankReport {
    let counted = job.comm.counters();
    let wait = counted.total().wait;
    let mut sent = counted.sent();
    for sent in sent.values_mut() {
        let number = |to: u32| attempt.team.numbers.get(to as usize).copied().unwrap_or(to);
        sent.to = std::mem::take(&mut sent.to).into_iter().map(|(to, bytes)| (number(to), bytes)).collect();
    }
    let predicted = attempt.plan.sent_from(attempt.team.me, attempt.body.batch.len(), job.steps_done());
    RankReport {
        rank: setup.number,
        coords: attempt.plan.layout.coords(attempt.team.me).reported(),
        node: setup.node.clone(),
        pid: std::process::id(),
        mapped_bytes,
        rss_anon: memory.rss_anon,
        rss_file: memory.rss_file,
        read_bytes,
        peak_rss: memory.peak_rss,
        compute_s: wall.saturating_sub(wait).as_secs_f64(),
        wait_s: wait.as_secs_f64(),
        sent,
        predicted: predicted.predicted().into_iter().collect(),
    }
}

/// Tells the actor what happens in a run, and fails where it was asked to.
struct Reporter<'a> {
    attempt: &'a Attempt,
    tell: &'a Tell,
    failpoint: Option<Failpoint>,
    number: usize,
    spoke_at: Cell<Instant>,
}

impl Reporter<'_> {
    fn say(&self, say: RankSay, body: Bytes) {
        self.spoke_at.set(Instant::now());
        (self.tell)(Message::Said(self.attempt.epoch, say, body));
    }

    /// Ends the process if that is asked for after so many steps.
    fn fail_at(&self, step: usize) {
        let Some(point) = self.failpoint.filter(|point| point.hits(self.number, step)) else { return };
        tracing::error!("failpoint {point}: this process kills itself");
        // What was said so far is on its way before the process is not.
        std::thread::sleep(FAILPOINT_WAIT);
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

impl Watch for Reporter<'_> {
    fn event(&mut self, event: StepEvent) {
        if let Ok(text) = serde_json::to_string(&event) {
            self.say(RankSay::Event(text), Bytes::new());
        }
    }

    fn wants_latents(&self, step: usize) -> bool {
        self.say(RankSay::Progress(u32::try_from(step).unwrap_or(u32::MAX)), Bytes::new());
        self.fail_at(step);
        let plan = &self.attempt.plan;
        let is_due = step.is_multiple_of(self.attempt.team.checkpoint_every.max(1) as usize);
        (is_due || step == plan.work.steps) && plan.resumes_at(step)
    }

    fn latents(&mut self, part: LatentsPart) {
        let step = u32::try_from(part.step).unwrap_or(u32::MAX);
        self.say(RankSay::Checkpoint(step), job::pack_part(&part));
    }

    /// Asked between layers, which is a sign of life.
    fn stop(&self) -> bool {
        if self.spoke_at.get().elapsed() >= ALIVE_EVERY {
            self.say(RankSay::Alive, Bytes::new());
        }
        self.attempt.stop.is_set()
    }
}

/// Ranks that prepare slowly are waited for before; from then on it is only connecting.
const SET_UP_MAX: Duration = Duration::from_secs(25);
/// How often a rank says that layers are done.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
const FAILPOINT_WAIT: Duration = Duration::from_millis(30);
