//! Ranks that really are processes: this binary, started again.

use crate::mesh::{LONG, SHORT};
use dg_comm::{Block, Call, Class, CommError, Communicator, Gone, Reduce, Tag};
use dg_net::plane::{Address, EpochKey, Listener, Member, Options, Rendezvous, Sockets};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const SIZE: usize = 4;

/// One rank, as its parent sees it.
struct Rank {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Rank {
    fn start(me: usize, folder: &Path, work: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::rank", "--ignored", "--nocapture", "--test-threads=1"])
            .env("PLANE_RANK", me.to_string())
            .env("PLANE_FOLDER", folder)
            .env("PLANE_WORK", work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output }
    }

    /// What follows `name` on the next line that has it; the harness prints others.
    fn line(&mut self, name: &str) -> String {
        for line in self.output.by_ref().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once(&format!("{name}: ")) {
                return rest.to_owned();
            }
        }
        panic!("a rank ended without {name}")
    }
}

/// Starts the ranks and tells them where they are.
fn start(folder: &Path, work: &str) -> Vec<Rank> {
    let mut ranks: Vec<_> = (0..SIZE).map(|me| Rank::start(me, folder, work)).collect();
    let addresses: Vec<_> = ranks.iter_mut().map(|rank| rank.line("ADDRESS")).collect();
    for rank in &mut ranks {
        writeln!(rank.input, "{}", addresses.join(" ")).unwrap();
    }
    ranks
}

/// The body of a rank's process.
#[test]
#[ignore = "run by the other tests, which start it as a rank"]
fn rank() {
    let Ok(me) = std::env::var("PLANE_RANK") else { return };
    let me: usize = me.parse().unwrap();
    let listener = Listener::unix(Path::new(&std::env::var_os("PLANE_FOLDER").unwrap())).unwrap();
    let Address::Unix(path) = listener.address() else { unreachable!("a unix socket") };
    println!("\nADDRESS: {}", path.display());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let members = line.split_whitespace().map(|path| Member::at(Address::Unix(path.into()))).collect();
    let rendezvous = Rendezvous { epoch: 9, key: EpochKey::new([3; 32]), members, me };
    let comm = rendezvous.connect(vec![listener], Options::default()).unwrap();
    println!("\nCONNECTED: {}", std::process::id());
    match &*std::env::var("PLANE_WORK").unwrap() {
        "sum" => sum(&comm),
        "die" => die(&comm),
        other => panic!("{other}"),
    }
}

fn sum(comm: &Sockets) {
    let call = |step| Call::within(LONG, Class::Control, Tag::new(1).step(step));
    let mut total = 0.0;
    for step in 0..200 {
        let mine = Block::from_f32(vec![(comm.rank() + 1) as f32; 1000]);
        total += comm.reduce(&call(step), Reduce::Sum, mine).unwrap().as_f32().unwrap()[999];
    }
    comm.finish().unwrap();
    println!("\nTOTAL: {total}");
}

/// All-to-alls until somebody dies.
fn die(comm: &Sockets) {
    let block = Block::from_f32(vec![1.0; 100_000]);
    let lengths = vec![block.len(); comm.size()];
    for step in 0.. {
        // The one that will die does not come to this one, so that all others wait in it.
        if step == 5 && comm.rank() == 2 {
            println!("\nBLOCKED: here");
            std::thread::sleep(LONG);
        }
        let call = Call::within(LONG, Class::UlyssesQkv, Tag::new(1).step(step));
        if let Err(error) = comm.all_to_all(&call, vec![block.clone(); comm.size()], &lengths) {
            let told = matches!(&error, CommError::PeerGone { rank, how: Gone::Lost, .. } if rank.rank == 2);
            println!("\nDIED: {step} {told} {error}");
            return;
        }
    }
}

#[test]
fn processes_compute_together_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut ranks = start(folder.path(), "sum");
    let mut pids: Vec<_> = ranks.iter_mut().map(|rank| rank.line("CONNECTED")).collect();
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), SIZE, "as many processes as ranks");
    for rank in &mut ranks {
        assert_eq!(rank.line("TOTAL"), "2000");
        assert!(rank.child.wait().unwrap().success());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no socket is left over");
}

#[test]
fn a_killed_process_is_named_by_all_others_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut ranks = start(folder.path(), "die");
    ranks.iter_mut().for_each(|rank| drop(rank.line("CONNECTED")));
    let mut killed = ranks.remove(2);
    killed.line("BLOCKED");
    std::thread::sleep(SHORT);
    // The sockets' files are gone since the ranks are connected, so that no end can leave one.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no socket is left over");
    let begin = Instant::now();
    // SIGKILL.
    killed.child.kill().unwrap();
    for rank in &mut ranks {
        let line = rank.line("DIED");
        assert!(line.starts_with("5 true all_to_all ulysses_qkv"), "{line}");
    }
    let took = begin.elapsed();
    eprintln!("all others knew {took:?} after the kill");
    assert!(took < Duration::from_secs(1), "{took:?}");
    killed.child.wait().unwrap();
    for rank in &mut ranks {
        assert!(rank.child.wait().unwrap().success());
    }
}
