//! `dg-cluster up`: the head.

use super::ask::Which;
use crate::failure::{Failure, print, warn};
use crate::load::load;
use crate::{certs, model};
use clap::{Args, ValueHint};
use dg_config::{ClusterFile, Key, Launch, Layers, state_folder, units};
use dg_core::ExitCode;
use dg_net::identity::{Name, Role, State};
use dg_net::join::{JoinDesk, TokenBook};
use dg_runtime::fleet::client::{CLIENT, Status};
use dg_runtime::fleet::head::{Head, HeadArgs, HeadError};
use dg_runtime::fleet::places;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// Arguments of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The cluster's file; docs/cluster.md describes it.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Go on in the background; the log is `log/head.log` of the state folder.
    #[arg(short = 'd', long)]
    detach: bool,
    /// With -d, come back when every node is in and every rank is ready.
    #[arg(long, requires = "detach")]
    wait: bool,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = wait_time)]
    timeout: Duration,
}

fn wait_time(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| "write a time such as 90s or 2min".into())
}

/// Starts the head of a cluster.
pub(crate) fn up(args: &UpArgs) -> Result<(), Failure> {
    let loaded = load(&args.file)?;
    loaded.file.check_layout(&loaded.text)?;
    let file = loaded.file;
    let folder = state_folder(&file);
    prepare(&file, &folder)?;
    if args.detach { detach(args, &file, &folder) } else { run(file, folder) }
}

/// Certificates that are missing are made.
fn prepare(file: &ClusterFile, folder: &Path) -> Result<(), Failure> {
    let state = State::create(folder)?;
    let now = SystemTime::now();
    let named = |node: &dg_config::Node| {
        Name::parse(&node.name).map_err(|e| Failure::from(dg_net::identity::IdentityError::from(e)))
    };
    if !state.has_ca() {
        certs::make(&state, &[], false, now)?;
    }
    let ca = state.ca()?;
    let local = file.nodes.iter().filter(|node| node.local).map(|node| Ok((named(node)?, Role::Node)));
    let client = Name::parse(CLIENT).map_err(dg_net::identity::IdentityError::from)?;
    let head = (Name::head(), Role::Head);
    let wanted = local.chain([Ok(head), Ok((client, Role::Client))]).collect::<Result<Vec<_>, Failure>>()?;
    for (name, role) in wanted {
        match state.load(&name) {
            Ok(identity) if identity.check(now).is_ok() => {}
            Ok(_) => drop(state.issue(&ca, &name, role, true, now)?),
            Err(_) if !state.identity_path(&name).exists() => {
                state.issue(&ca, &name, role, false, now)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn run(file: ClusterFile, folder: PathBuf) -> Result<(), Failure> {
    super::log();
    let state = State::open(&folder)?;
    let desk = JoinDesk::with_tokens(state.ca()?, state.admitted()?, TokenBook::open(&state)?);
    let program = std::env::current_exe().map_err(|e| {
        Failure::new(ExitCode::Failed, format!("cannot find this program: {e}"), "was it moved or removed?")
    })?;
    let (name, by_hand) = (file.cluster.name.clone(), by_hand(&file));
    let args = HeadArgs {
        model: Some(model_name(&file)),
        file,
        state_dir: folder.clone(),
        program,
        desk: Some(desk),
    };
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let mut head = Head::start(args).await?;
        print(&format!("cluster `{name}` is up at {}", head.address()))?;
        if let Some(text) = by_hand {
            print(&text)?;
        }
        let listed = places::announce(&name, &folder);
        if let Err(e) = &listed {
            warn(&format!("other commands will need --cluster: {e}"));
        }
        tokio::select! {
            () = super::asked_to_end() => {
                head.shut_down();
                head.ended().await
            }
            ended = head.ended() => ended,
        }?;
        // A head that has failed leaves its notes, as one that was killed does: `up` takes over what it left.
        places::withdraw(&name, &folder);
        let _ = std::fs::remove_file(folder.join("head.addr"));
        Ok(())
    })
}

/// How nodes are started that the head does not start.
fn by_hand(file: &ClusterFile) -> Option<String> {
    let manual = file.nodes.iter().filter(|node| node.launch == Launch::Manual);
    let (path, head) = (file.path.display(), file.cluster.listen.to_string());
    let steps = manual.map(|node| {
        let name = &node.name;
        format!(
            "node {name} is started by hand:\n  here      dg-cluster token create --cluster {path} --node {name}\n  \
             there     dg-cluster join TOKEN --name {name}\n  from then dg-cluster agent --name {name} --head {head}"
        )
    });
    let steps: Vec<String> = steps.collect();
    (!steps.is_empty()).then(|| steps.join("\n"))
}

fn model_name(file: &ClusterFile) -> String {
    let mut layers = Layers::default();
    layers.add_cluster_file(file);
    layers.resolve().text(Key::ModelName).unwrap_or(model::DEMO).to_owned()
}

/// Starts this program again as one that nobody's terminal stops.
fn detach(args: &UpArgs, file: &ClusterFile, folder: &Path) -> Result<(), Failure> {
    let log = folder.join("log").join("head.log");
    let failed = |e: std::io::Error| {
        Failure::new(ExitCode::Failed, format!("cannot start the head: {e}"), "is the state folder writable?")
    };
    std::fs::create_dir_all(folder.join("log")).map_err(failed)?;
    let output = std::fs::File::options().create(true).append(true).open(&log).map_err(failed)?;
    let begin = output.metadata().map_err(failed)?.len();
    let path = args.file.canonicalize().map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command
        .arg("up")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().map_err(failed)?;
    super::runtime()?.block_on(async {
        let until = Instant::now() + args.timeout;
        let which = Which::of(file, folder);
        let (mut last, mut by_hand) = (None, by_hand(file));
        loop {
            if let Some(failure) = ended(&mut child, &log, begin) {
                return Err(failure);
            }
            let is_own = |status: &Status| status.head.pid == child.id();
            if let Ok(client) = which.connect_quietly().await
                && let Ok(status) = client.status().await
                && is_own(&status)
            {
                // Before it waits for them.
                if let Some(text) = by_hand.take().filter(|_| !is_ready(&status)) {
                    print(&text)?;
                }
                if !args.wait || is_ready(&status) {
                    return print(&format!("cluster `{}` is up at {}", status.cluster, status.head.address));
                }
                last = Some(status);
            }
            if Instant::now() > until {
                return Err(late(last, args.timeout, &log));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

fn is_ready(status: &Status) -> bool {
    let is_in = status.nodes.iter().all(|node| node.state != "down");
    is_in && status.ranks.iter().all(|rank| rank.state == "idle" || rank.state == "busy")
}

/// The head has ended: what it said.
fn ended(child: &mut Child, log: &Path, begin: u64) -> Option<Failure> {
    let status = child.try_wait().ok().flatten()?;
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(text.get(usize::try_from(begin).unwrap_or(0)..).unwrap_or_default());
    let error =
        text.lines().rev().find_map(|line| line.strip_prefix("error: ")).unwrap_or("the head ended at once");
    let hint = text.lines().rev().find_map(|line| line.strip_prefix("hint: "));
    let hint = hint.map_or_else(|| format!("its log is {}", log.display()), str::to_owned);
    let exit = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    Some(Failure::new(ExitCode::from_code(exit.unwrap_or(1)), error, hint))
}

fn late(last: Option<Status>, timeout: Duration, log: &Path) -> Failure {
    let missing = last.map(|status| {
        let nodes = status.nodes.iter().filter(|node| node.state == "down").map(|node| node.node.clone());
        let nodes: Vec<String> = nodes.collect();
        let ranks = status.ranks.iter().filter(|rank| rank.state != "idle" && rank.state != "busy").count();
        format!(
            "nodes that are not in: {}; ranks that are not ready: {ranks}",
            if nodes.is_empty() { "none".into() } else { nodes.join(", ") }
        )
    });
    let missing = missing.unwrap_or_else(|| "the head does not answer".into());
    let message = format!("the cluster is not ready after {}: {missing}", units::duration_text(timeout));
    let hint = format!("it goes on: `dg-cluster status` shows it; its log is {}", log.display());
    Failure::new(ExitCode::Unreachable, message, hint)
}

impl From<HeadError> for Failure {
    fn from(e: HeadError) -> Self {
        let hint = e.hint().unwrap_or_else(|| "see docs/cluster.md".into());
        Self::new(e.exit(), e.to_string(), hint)
    }
}
