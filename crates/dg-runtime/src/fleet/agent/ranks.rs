//! The processes of the ranks of a node.

use super::super::pipe;
use super::super::protocol::{NodeSpec, RankIn, RankOut, RankSetup};
use super::AgentArgs;
use super::actor::Message;
use super::log::Log;
use crate::failpoint;
use crate::logic::cluster::Stamp;
use bytes::Bytes;
use ractor::ActorRef;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

/// One rank that runs.
pub(super) struct Rank {
    pub(super) start: Stamp,
    pub(super) pid: u32,
    pub(super) log: Arc<Mutex<Log>>,
    /// Whether it may be at work for some epoch.
    pub(super) is_busy: bool,
    /// Whether it was so when the lease ended, and has not stopped since.
    pub(super) must_stop: bool,
    frames: mpsc::UnboundedSender<(RankIn, Bytes)>,
    kill: Option<oneshot::Sender<()>>,
}

impl Rank {
    /// Starts a process. What it says and that it ends comes to `actor`. A failpoint is for the first of a slot only.
    pub(super) fn spawn(
        args: &AgentArgs,
        spec: &NodeSpec,
        (slot, start): (u16, Stamp),
        is_first: bool,
        actor: &ActorRef<Message>,
    ) -> std::io::Result<Self> {
        let (own, other) = pipe::pair()?;
        let (program, arguments) = &args.rank;
        let mut command = Command::new(program);
        command.args(arguments).stdin(other).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.envs(&spec.env).process_group(0);
        let gpu = gpu(spec.gpus.as_deref(), slot)?;
        if let Some(gpu) = gpu {
            let is_set = |name: &str| spec.env.contains_key(name) || std::env::var_os(name).is_some();
            command.envs(of_gpu(gpu, is_set));
        }
        if !is_first {
            command.env_remove(failpoint::VARIABLE);
        }
        let mut child = command.spawn()?;
        // The command holds the other end.
        drop(command);
        let pid = child.id().unwrap_or_default();
        let log: Arc<Mutex<Log>> = Arc::default();
        let file = log_file(args, slot);
        let output = child.stdout.take().map(|out| tokio::spawn(read_lines(out, log.clone(), file.clone())));
        let errors = child.stderr.take().map(|out| tokio::spawn(read_lines(out, log.clone(), file)));
        let readers = output.into_iter().chain(errors).collect();
        let (frames, outgoing) = mpsc::unbounded_channel();
        let (incoming, half) = own.into_split();
        tokio::spawn(pipe::write(half, outgoing));
        tokio::spawn(listen(incoming, slot, start, actor.clone()));
        let (kill, killed) = oneshot::channel();
        tokio::spawn(watch(child, killed, readers, slot, start, actor.clone()));
        let rank = Self { start, pid, log, is_busy: false, must_stop: false, frames, kill: Some(kill) };
        rank.send(RankIn::Setup(setup(args, spec, slot, gpu)), Bytes::new());
        Ok(rank)
    }

    pub(super) fn send(&self, message: RankIn, body: Bytes) {
        // A process that is gone is told of elsewhere.
        let _ = self.frames.send((message, body));
    }

    pub(super) fn kill(&mut self) {
        self.kill.take();
    }

    pub(super) fn tail(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).tail(TAIL_LINES)
    }
}

/// The GPU of a slot. One without would compute on that of another rank.
fn gpu(gpus: Option<&[u32]>, slot: u16) -> std::io::Result<Option<u32>> {
    let Some(gpus) = gpus else { return Ok(None) };
    let gpu = gpus.get(usize::from(slot)).copied();
    let none = || std::io::Error::other(format!("the node has {} GPUs, none for slot {slot}", gpus.len()));
    gpu.map(Some).ok_or_else(none)
}

/// What the environment of a rank on this GPU has besides; `is_set` of what it has already.
fn of_gpu(gpu: u32, is_set: impl Fn(&str) -> bool) -> Vec<(&'static str, String)> {
    let mut all = vec![(VISIBLE_DEVICES, gpu.to_string()), (DEVICE_ORDER.0, DEVICE_ORDER.1.into())];
    if !is_set(CONNECTIONS.0) {
        all.push((CONNECTIONS.0, CONNECTIONS.1.into()));
    }
    all
}

fn setup(args: &AgentArgs, spec: &NodeSpec, slot: u16, gpu: Option<u32>) -> RankSetup {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let share = processors / usize::from(spec.slots.max(1));
    RankSetup {
        number: spec.first + u32::from(slot),
        node: args.name.to_string(),
        state_dir: args.state_dir.display().to_string(),
        model: spec.model.clone(),
        gpu,
        threads: spec.threads.unwrap_or_else(|| u32::try_from(share).unwrap_or(1)).max(1),
        ranks: spec.slots.max(1),
        plane_host: spec.plane_host.clone(),
        tensor_tls: spec.tensor_tls,
        agent: std::process::id(),
    }
}

/// Waits for the end of the process, or ends it.
async fn watch(
    mut child: Child,
    killed: oneshot::Receiver<()>,
    readers: Vec<tokio::task::JoinHandle<()>>,
    slot: u16,
    start: Stamp,
    actor: ActorRef<Message>,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        _ = killed => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    last_words(readers).await;
    let how = status.map_or_else(|e| e.to_string(), describe);
    let _ = actor.cast(Message::Gone(slot, start, how));
}

/// Waits until what a process wrote is read. The pipes of one that is dead end with its last line, so this takes a moment
/// and no longer: the limit is for a busy machine, where the readers have to wait for their turn, and for a child of the
/// process that keeps a pipe open. Its death is told with its last lines, which the reason of a job's end is made of, and
/// so not before.
async fn last_words(readers: Vec<tokio::task::JoinHandle<()>>) {
    let all = async {
        for reader in readers {
            let _ = reader.await;
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS_MAX, all).await;
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

async fn listen(
    mut incoming: tokio::net::unix::OwnedReadHalf,
    slot: u16,
    start: Stamp,
    actor: ActorRef<Message>,
) {
    while let Ok((message, body)) = pipe::read::<RankOut>(&mut incoming).await {
        if actor.cast(Message::FromRank(slot, start, message, body)).is_err() {
            return;
        }
    }
}

fn log_file(args: &AgentArgs, slot: u16) -> Option<Arc<Mutex<std::fs::File>>> {
    let folder = args.state_dir.join("log");
    std::fs::create_dir_all(&folder).ok()?;
    let path = folder.join(format!("{}-{slot}.log", args.name));
    let is_large = path.metadata().is_ok_and(|file| file.len() > LOG_BYTES_MAX);
    if is_large {
        let _ = std::fs::rename(&path, path.with_extension("log.1"));
    }
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path).ok()?;
    Some(Arc::new(Mutex::new(file)))
}

async fn read_lines(
    out: impl AsyncRead + Unpin + Send + 'static,
    log: Arc<Mutex<Log>>,
    file: Option<Arc<Mutex<std::fs::File>>>,
) {
    use std::io::Write;
    let mut lines = BufReader::new(out).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).into_owned();
        if let Some(file) = &file {
            let _ = writeln!(file.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
        }
        log.lock().unwrap_or_else(PoisonError::into_inner).push(&line);
    }
}

/// The GPU that a rank sees: its own alone, which is then the first one. Stands above the node's `env`.
const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
/// Numbers as `nvidia-smi` has them, not the fastest first.
const DEVICE_ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
/// Queues of the device, the most that there are. With fewer (8 by default) two streams may share one, and a send of NCCL
/// that waits would hold up the receive behind it.
const CONNECTIONS: (&str, &str) = ("CUDA_DEVICE_MAX_CONNECTIONS", "32");
/// Log lines that go to the head when a rank ends.
const TAIL_LINES: usize = 20;
const LAST_WORDS_MAX: std::time::Duration = std::time::Duration::from_millis(200);
const LOG_BYTES_MAX: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};
    use tokio::io::AsyncWriteExt;

    fn waits_for(
        writer: impl Future<Output = ()> + Send + 'static,
        out: tokio::io::DuplexStream,
    ) -> (Duration, Log) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let log: Arc<Mutex<Log>> = Arc::default();
            let reader = tokio::spawn(read_lines(out, log.clone(), None));
            tokio::spawn(writer);
            let begin = Instant::now();
            last_words(vec![reader]).await;
            let log = std::mem::take(&mut *log.lock().unwrap());
            (begin.elapsed(), log)
        })
    }

    #[test]
    fn a_rank_has_the_gpu_of_its_slot_and_none_shares_one() {
        let of = |gpus: Option<Vec<u32>>, slot| gpu(gpus.as_deref(), slot).map_err(|e| e.to_string());
        assert_eq!((of(None, 3), of(Some(vec![2, 5]), 1)), (Ok(None), Ok(Some(5))));
        assert_eq!(of(Some(vec![2, 5]), 2), Err("the node has 2 GPUs, none for slot 2".into()));
    }

    #[test]
    fn a_rank_on_a_gpu_sees_it_alone_and_has_a_queue_for_each_stream() {
        let of = |set: &[&str]| {
            let all = of_gpu(5, |name| set.contains(&name)).into_iter();
            all.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let always = ["CUDA_VISIBLE_DEVICES=5", "CUDA_DEVICE_ORDER=PCI_BUS_ID"];
        assert_eq!(of(&[]), [always[0], always[1], "CUDA_DEVICE_MAX_CONNECTIONS=32"]);
        // The user's number stays; which GPU it is, is the file's word.
        assert_eq!(of(&["CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_VISIBLE_DEVICES"]), always);
    }

    #[test]
    fn the_last_lines_are_read_and_a_pipe_that_stays_open_is_left() {
        let (mut end, out) = tokio::io::duplex(64);
        let late = async move {
            tokio::time::sleep(Duration::from_millis(60)).await;
            end.write_all(b"first\nlast\n").await.unwrap();
        };
        let (took, log) = waits_for(late, out);
        assert_eq!(log.tail(9), ["first", "last"], "after {took:?}");
        assert!(took < LAST_WORDS_MAX, "{took:?}");
        let (mut end, out) = tokio::io::duplex(64);
        let open = async move {
            end.write_all(b"first\n").await.unwrap();
            std::future::pending::<()>().await;
        };
        let (took, log) = waits_for(open, out);
        assert_eq!(log.tail(9), ["first"], "after {took:?}");
        assert!(took >= LAST_WORDS_MAX);
    }
}
