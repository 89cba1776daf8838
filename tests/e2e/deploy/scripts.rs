//! Shell scripts, those inside of manifests too.

use super::{expect_silence, files, read, tool, words, yaml};
use crate::place::Place;
use dg_testkit::program::{cluster_bin, finish};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Each script with its shell.
fn scripts() -> Vec<(String, &'static str, String)> {
    let batch = read("slurm/dg-cluster.sbatch");
    let inner = batch.split("<<'AGENT'\n").nth(1).and_then(|rest| rest.split("\nAGENT\n").next());
    let inner = inner.expect("the agents' script").to_owned();
    let mut scripts = vec![("slurm".to_owned(), "bash", batch), ("slurm agent".to_owned(), "bash", inner)];
    for path in files().into_iter().filter(|path| path.ends_with(".yaml")) {
        for document in yaml(&path) {
            inline(&document, &mut |script| {
                // Compose has its own variables, and `$$` is what it leaves for the shell.
                let script = if path == "compose.yaml" { script.replace("$$", "$") } else { script };
                scripts.push((path.clone(), "sh", script));
            });
        }
    }
    assert!(scripts.len() >= 8, "{scripts:?}");
    scripts
}

/// Commands `sh -euc SCRIPT`, wherever they are.
fn inline(value: &Value, found: &mut impl FnMut(String)) {
    match value {
        Value::Object(fields) => fields.values().for_each(|value| inline(value, found)),
        Value::Array(items) => {
            if items.first().is_some_and(|first| first == "sh") {
                let words = words(value);
                assert_eq!((words.len(), words[1].as_str()), (3, "-euc"), "{words:?}");
                found(words[2].clone());
            }
            items.iter().for_each(|value| inline(value, found));
        }
        _ => {}
    }
}

#[test]
fn shells_understand_the_scripts() {
    let place = Place::new();
    let shellcheck = tool("shellcheck", "scripts were parsed, but not looked at more closely");
    for (number, (name, shell, script)) in scripts().into_iter().enumerate() {
        let file = format!("{number}-{}.sh", name.replace(['/', ' '], "-"));
        let is_whole = script.starts_with("#!");
        place.write(&file, if is_whole { script } else { format!("#!/bin/{shell}\nset -eu\n{script}\n") });
        expect_silence(Command::new(shell).arg("-n").arg(place.path(&file)));
        if let Some(shellcheck) = &shellcheck {
            expect_silence(Command::new(shellcheck).args(["-s", shell]).arg(place.path(&file)));
        }
    }
}

/// Stand-ins for Slurm and for the commands that need a head; each writes what it was called with.
const STAND_INS: [(&str, &str); 4] = [
    ("scontrol", "echo Rack-1.example\necho rack-2"),
    ("hostname", "echo 10.0.0.1 172.17.0.1"),
    ("srun", "shift $(($# - 4))\nfor n in Rack-1.example rack-2; do SLURMD_NODENAME=$n \"$@\" & done\nwait"),
    // it draws when the head and both agents are there
    (
        "diffgentor",
        "until [ \"$(wc -l < \"$CALLS.pids\")\" = 3 ]; do sleep 0.05; done\n\
         test -n \"$LATE\" && { sleep 60 > /dev/null 2>&1 & trap \"kill $!\" TERM; wait; }\nexit ${STATUS:-0}",
    ),
];

const CLUSTER: &str = r#"
case $1 in
validate) exec "$REAL" "$@" ;;
up | agent)
    sleep 60 > /dev/null 2>&1 &
    trap "kill $!; echo '$1 ends' >> '$CALLS'; exit 0" TERM
    echo $$ >> "$CALLS.pids"
    wait ;;
status) test -s "$CALLS.pids" ;;
token) echo "dgjoin1:$4" ;;
down) kill -TERM $(cat "$CALLS.pids") ;;
esac"#;

/// Runs the batch script with what is `late` and with the exit status that `t2i` shall have.
fn run_batch(place: &Place, status: &str, is_ended_early: bool) -> (Option<i32>, String, String) {
    let bin = place.path("bin");
    std::fs::create_dir(&bin).expect("the folder is writable");
    for (name, body) in STAND_INS.into_iter().chain([("dg-cluster", CLUSTER)]) {
        let path = format!("bin/{name}");
        place.write(&path, format!("#!/bin/bash\necho \"{name} $*\" >> \"$CALLS\"\n{body}\n"));
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(place.path(&path), mode).expect("it is ours");
    }
    let script = dg_testkit::workspace_dir().join("cluster/slurm/dg-cluster.sbatch");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a PATH"));
    let mut command = Command::new("bash");
    command.arg(script).args(["--prompt", "red apple"]).env("PATH", path);
    command.env("CALLS", place.path("calls")).env("REAL", cluster_bin()).env("STATUS", status);
    command.env("SLURM_SUBMIT_DIR", place.path("")).env("SLURM_JOB_ID", "77");
    command.env("SLURM_JOB_NODELIST", "both").env("LATE", if is_ended_early { "1" } else { "" });
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("bash is there");
    let calls = || std::fs::read_to_string(place.path("calls")).unwrap_or_default();
    if is_ended_early {
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while !calls().contains("diffgentor t2i") {
            assert!(std::time::Instant::now() < end, "{}", calls());
            std::thread::sleep(Duration::from_millis(50));
        }
        let id = child.id().to_string();
        expect_silence(Command::new("bash").args(["-c", "kill -TERM \"$0\"", &id]));
    }
    let output = finish(child, Duration::from_secs(60));
    (output.status, calls(), format!("{}{}", output.stdout, output.stderr))
}

#[test]
fn the_batch_script_starts_a_cluster_and_leaves_no_key() {
    for (status, is_ended_early, expected) in [("0", false, 0), ("4", false, 4), ("0", true, 143)] {
        let place = Place::new();
        let (ended, calls, said) = run_batch(&place, status, is_ended_early);
        assert_eq!(ended, Some(expected), "{calls}\n{said}");
        let order = [
            "dg-cluster validate ",
            "dg-cluster up ",
            "dg-cluster token create --node rack-1 ",
            "dg-cluster token create --node rack-2 ",
            "dg-cluster join dgjoin1:",
            "dg-cluster agent --name rack-",
            "diffgentor t2i --cluster ",
            "dg-cluster down ",
        ];
        let at: Vec<_> = order.iter().map(|call| calls.find(call)).collect();
        assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?}\n{calls}");
        assert!(calls.contains("--prompt red apple"), "{calls}");
        assert_eq!(calls.matches("agent ends").count(), 2, "{calls}");
        assert_eq!(calls.matches("up ends").count(), 1, "{calls}");
        assert!(said.contains("cluster `slurm-77`, 2 nodes on 2 hosts"), "{said}");
        for gone in ["state", "tokens", "joined"] {
            assert!(!place.path(&format!("dg-cluster-77/{gone}")).exists(), "{gone}");
        }
        assert!(place.path("dg-cluster-77/cluster.toml").is_file());
        let mode = place.path("dg-cluster-77").metadata().expect("the job's folder").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
}
