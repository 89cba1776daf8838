//! A small cluster that lives, and the commands that ask it: forms, headings, refusals, ssh, ranks as processes.

use super::place::{Place, SMALL, expect_exit, text};
use dg_testkit::program::cluster_bin;
use dg_testkit::{Output, workspace_dir};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// A folder with a cluster's file, whose cluster is taken down at the end.
pub(crate) struct Live(pub(crate) Place);

impl Live {
    /// One whose nodes are these, on a free port.
    pub(crate) fn new(nodes: &str) -> Self {
        let place = Place::new();
        let port =
            UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let cluster = format!("[cluster]\nname = \"small\"\nlisten = \"127.0.0.1:{port}\"\n");
        place.write("small.toml", format!("{cluster}{nodes}[model]\nname = \"demo\"\n"));
        Self(place)
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        self.0.cluster(args, &[]).expect_success().stdout
    }

    fn fails(&self, args: &[&str], status: i32, said: &[&str]) {
        let output = self.0.cluster(args, &[]);
        expect_exit(&output, status, said);
        assert_eq!(
            (output.stderr.matches("error: ").count(), output.stderr.matches("hint: ").count()),
            (1, 1)
        );
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())).expect("one JSON object")
    }

    pub(crate) fn draw(&self, folder: &str, args: &[&str]) -> Output {
        let asked = ["--prompt", "red apple", "--seed", "7", "--output_dir", folder];
        self.0.run(&[SMALL, &asked, args].concat())
    }

    /// Until the cluster is as it should be.
    pub(crate) fn wait(&self, what: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.json(&["status"]);
            if what(&status) {
                return status;
            }
            assert!(Instant::now() < until, "{status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Down already, or not up at all: as good.
        let _ = self.0.cluster(&["down"], &[]);
    }
}

const TWO: &str = "[[node]]\nname = \"left\"\nlocal = true\ncpu_threads = 1\n\
                   [[node]]\nname = \"right\"\nlocal = true\ncpu_threads = 1\n";

#[test]
fn a_cluster_answers_whoever_asks() {
    let live = Live::new(TWO);
    live.fails(&["status"], 5, &["no cluster is up on this host", "hint: `dg-cluster up FILE -d --wait`"]);
    assert!(
        live.ok(&["up", "small.toml", "-d", "--wait"]).starts_with("cluster `small` is up at 127.0.0.1:")
    );
    let drawn = live.draw("made", &["--cluster", "small.toml", "--ulysses_degree", "2"]).expect_success();
    assert!(drawn.stdout.contains("000000.png"));
    live.draw("serial", &[]).expect_success();
    assert!(live.0.tree("made") == live.0.tree("serial"), "the picture is the serial one");
    forms(&live);
    pages(&live);
    orders(&live);
    refusals(&live);
    assert!(live.ok(&["down"]).starts_with("the cluster is down"));
    live.fails(&["down"], 5, &["no cluster is up on this host"]);
    live.fails(&["status", "--cluster", "small.toml"], 5, &["the cluster is not up", "dg-cluster up"]);
}

/// Objects have the fields that docs/cluster.md lists, and no others.
fn forms(live: &Live) {
    for command in ["status", "jobs"] {
        let documented = documented(command);
        let mut found = BTreeSet::new();
        fields(&live.json(&[command]), "", &mut found);
        for name in &found {
            assert!(
                documented.contains_key(name),
                "`{name}` of `{command} -o json` is not in docs/cluster.md"
            );
        }
        for (name, is_optional) in &documented {
            assert!(*is_optional || found.contains(name), "`{command} -o json` has no `{name}`");
        }
    }
    let status = live.json(&["status"]);
    assert_eq!(
        (&status["schema"], &status["cluster"], &status["waiting"]),
        (&1.into(), &"small".into(), &0.into())
    );
    assert!(status["ranks"].as_array().is_some_and(|ranks| ranks.iter().all(|rank| rank["state"] == "idle")));
    let job = &live.json(&["jobs"])["jobs"][0];
    assert_eq!(
        (&job["state"], &job["prompt"], &job["step"]),
        (&"done".into(), &"red apple".into(), &2.into())
    );
    assert_eq!((&job["ranks"], &job["layout"]), (&serde_json::json!([0, 1]), &"ulysses 2".into()));
}

/// The fields of the form of a command by their paths, and whether one may be absent.
fn documented(command: &str) -> BTreeMap<String, bool> {
    let page = std::fs::read_to_string(workspace_dir().join("docs/cluster.md")).expect("it is committed");
    let heading = format!("\n### `{command} -o json`\n");
    let (_, section) = page.split_once(&heading).unwrap_or_else(|| panic!("no{heading}"));
    let rows = section.lines().take_while(|line| !line.starts_with('#'));
    let rows = rows.filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(name, is)| (name.to_owned(), is.contains("absent"))).collect()
}

fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                fields(value, &path, found);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().for_each(|value| fields(value, &format!("{path}[]"), found));
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

fn pages(live: &Live) {
    let has_row = |page: &str, row: &str| {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(page.lines().any(|line| words(line) == words(row)), "no row `{row}` in\n{page}");
    };
    let status = live.ok(&["status"]);
    assert!(status.contains("0 jobs waiting, 0 jobs running"), "{status}");
    has_row(&status, "node state agent ranks device speed memory");
    has_row(&status, "rank node pid state job step device memory");
    let jobs = live.ok(&["jobs"]);
    has_row(&jobs, "job client priority state step attempts ranks layout seconds prompt");
    assert!(jobs.contains("is done") && !jobs.contains("node left is in"), "{jobs}");
    assert!(live.ok(&["jobs", "--events"]).contains("node left is in"));
    live.ok(&["logs", "left"]);
    live.ok(&["logs", "1"]);
    live.fails(&["logs", "nobody"], 3, &["neither a node nor a rank of cluster `small`"]);
}

fn orders(live: &Live) {
    let state = |status: &Value| status["nodes"][0]["state"].clone();
    live.ok(&["drain", "left"]);
    live.wait(|status| state(status) == "draining");
    live.ok(&["drain", "left", "--undo"]);
    live.wait(|status| state(status) == "up");
    live.fails(&["drain", "nobody"], 3, &["no node `nobody`"]);
    live.fails(&["cancel", "9-9"], 3, &["no job `9-9` waits or runs", "dg-cluster jobs"]);
    live.fails(&["up", "small.toml", "-d"], 4, &["the cluster `small` is up already", "dg-cluster down"]);
    live.fails(&["up", "small.toml"], 4, &["the cluster `small` is up already"]);
    assert!(live.ok(&["certs", "show"]).contains("client"), "of the cluster that is up");
}

fn refusals(live: &Live) {
    let cluster = ["--cluster", "small.toml"];
    let run = |more: &[&str]| live.draw("none", &[&cluster[..], more].concat());
    expect_exit(&run(&["--model_name", "some/where"]), 4, &["no node has the model `some/where`", "hint: "]);
    expect_exit(&run(&["--ulysses_degree", "4"]), 4, &["needs 4 ranks, the cluster has 2", "hint: "]);
    expect_exit(&run(&["--client", "nobody"]), 3, &["nobody.pem", "hint: "]);
    assert!(live.0.names("none").is_empty());
}

#[test]
fn ranks_that_are_processes_draw_what_threads_draw() {
    let live = Live::new(TWO);
    for folder in ["threads", "processes"] {
        let report = format!("{folder}.json");
        let args = ["--launch", folder, "--ring_degree", "2", "--report", &report];
        live.draw(folder, &args).expect_success();
    }
    assert!(live.0.tree("threads") == live.0.tree("processes"));
    let pids = |name: &str| -> Vec<Value> {
        let report: Value = serde_json::from_slice(&live.0.read(name)).expect("a report");
        report["ranks"].as_array().expect("a list").iter().map(|rank| rank["pid"].clone()).collect()
    };
    let (threads, processes) = (pids("threads.json"), pids("processes.json"));
    assert!(threads[0] == threads[1] && processes[0] != processes[1], "{threads:?} {processes:?}");
    live.fails(&["status"], 5, &["no cluster is up"]);
}

/// What `ssh` runs there, this one runs here: the last argument, by a shell, in another home.
const SSH: &str = "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"$FAKE/arguments\"\nfor last; do :; done\n\
                   unset XDG_STATE_HOME\nHOME=$FAKE/home exec sh -c \"$last\"\n";

#[test]
fn a_node_is_started_by_ssh() {
    let live = Live::new(
        "[[node]]\nname = \"far\"\nlocal = true\nlaunch = \"ssh\"\nssh = \"me@far\"\ncpu_threads = 1\n",
    );
    let fake = live.0.path("fake");
    std::fs::create_dir_all(fake.join("home")).expect("the folder is writable");
    live.0.write("fake/ssh", SSH);
    std::fs::set_permissions(fake.join("ssh"), PermissionsExt::from_mode(0o755)).expect("it is there");
    let paths = [fake.as_path(), cluster_bin().parent().expect("it is in a folder")].map(text).join(":");
    let path = format!("{paths}:{}", std::env::var("PATH").unwrap_or_default());
    let env = [("FAKE", text(&fake)), ("PATH", path.as_str())];
    live.0.cluster(&["up", "small.toml", "-d"], &env).expect_success();
    // It finds no certificate until the node has joined, once; the head tries again by itself.
    let token = live.ok(&["token", "create", "--cluster", "small.toml", "--node", "far"]);
    let home = fake.join("home");
    let usual = home.join(".local/state");
    let at_home = [("HOME", text(&home)), ("XDG_STATE_HOME", text(&usual))];
    live.0.cluster(&["join", token.trim(), "--name", "far"], &at_home).expect_success();
    assert!(usual.join("dg-cluster/nodes/far/far.pem").is_file());
    live.wait(|status| status["ranks"][0]["state"] == "idle");
    let arguments = String::from_utf8(live.0.read("fake/arguments")).expect("plain words");
    let last: Vec<&str> = arguments.lines().rev().take(3).collect();
    assert!(last[0].starts_with("dg-cluster agent --name far --head 127.0.0.1:"), "{arguments}");
    assert_eq!(last[1..], ["me@far", "--"]);
    let drawn = live.draw("made", &["--cluster", "small.toml"]);
    expect_exit(&drawn, 0, &[]);
}
