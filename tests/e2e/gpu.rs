//! The package for machines with GPUs, as a dry run on the CPU.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script(name: &str) -> PathBuf {
    dg_testkit::workspace_dir().join("tests/gpu").join(name)
}

/// Runs a script in `folder`, without a Python: a peer is nothing to wait for here.
fn run(script: &Path, folder: &Path, arguments: &[&str], settings: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(script);
    command.args(arguments).current_dir(folder).env("DG_PYTHON", "false").envs(settings.iter().copied());
    command.output().unwrap_or_else(|e| panic!("{}: {e}", script.display()))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The parts that a run has left, by name.
fn parts(folder: &Path) -> Vec<(String, Value)> {
    let results = std::fs::read_to_string(folder.join("gpu-results/results.json")).expect("results");
    let results: Value = serde_json::from_str(&results).expect("one object");
    let parts = results["parts"].as_array().expect("a list").iter();
    parts.map(|part| (part["part"].as_str().expect("a name").to_owned(), part.clone())).collect()
}

#[test]
fn a_package_runs_where_there_is_nothing_else() {
    let (home, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let archive = home.path().join("gpu.tar.xz");
    let settings = [("DG_GPU_BIN", dg_testkit::program::bench_bin()), ("XZ_OPT", Path::new("-0"))];
    let packed = run(&script("pack.sh"), home.path(), &[archive.to_str().unwrap()], &settings);
    // A program with debug information may be too large for a package; the archive is there all the same.
    assert!(archive.is_file(), "{}", text(&packed));
    assert!(text(&packed).contains("dg-bench needs glibc 2."), "{}", text(&packed));
    let unpacked = Command::new("tar").arg("xf").arg(&archive).current_dir(&away).status();
    assert!(unpacked.expect("tar").success());
    let ran = run(&away.path().join("diffgentor-gpu/run.sh"), away.path(), &["--device", "cpu"], &[]);
    assert!(ran.status.success(), "{}", text(&ran));
    let parts = parts(away.path());
    let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["doctor", "golden", "kernels", "conformance", "denoise", "ranks"]);
    let rows = |name: &str| {
        let (_, part) = parts.iter().find(|(have, _)| have == name).unwrap();
        part["rows"].as_array().unwrap().clone()
    };
    let good = |name: &str| rows(name).iter().filter(|row| row["state"] == "good").count();
    assert_eq!((good("golden"), good("kernels"), good("conformance"), good("ranks")), (2, 32, 19, 4));
    let step = rows("denoise").iter().find(|row| row["name"] == "step").cloned().expect("a step");
    assert!(step["numbers"]["ms_per_step"].as_f64().unwrap() > 0.0, "{step}");
    assert!(text(&ran).contains("6 of 6 parts are good"), "{}", text(&ran));
}

fn make_program(folder: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let program = folder.join("program");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// A program that dies, one that hangs, and one that says nonsense are parts of their own. What was found until then stays.
#[test]
fn a_part_that_fails_does_not_hide_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let real = dg_testkit::program::bench_bin().display();
    let wrapper = format!(
        "#!/bin/sh\ncase \"$*\" in\n*kernels*) kill -9 $$ ;;\n*conformance*) echo nonsense ;;\n\
         *denoise*) {real} \"$@\" >/dev/null; sleep 60 ;;\n\
         *ranks*|*golden*) exit 0 ;;\n*) exec {real} \"$@\" ;;\nesac\n"
    );
    let program = make_program(folder.path(), &wrapper);
    let settings = [("DG_GPU_BIN", program.as_path()), ("DG_GPU_MAX", Path::new("12"))];
    let ran = run(&script("run.sh"), folder.path(), &["--device", "cpu"], &settings);
    assert_eq!(ran.status.code(), Some(1), "{}", text(&ran));
    let good: Vec<String> = parts(folder.path())
        .into_iter()
        .filter(|(_, part)| part["good"] == true)
        .map(|(name, _)| name)
        .collect();
    assert_eq!((good, parts(folder.path()).len()), (vec!["doctor".to_owned()], 6));
    assert!(text(&ran).contains("2-kernels: it was cut off; see 2-kernels.log"), "{}", text(&ran));
    let all = parts(folder.path());
    let (_, denoise) = all.iter().find(|(name, _)| name == "denoise").expect("its rows");
    assert!(denoise["cut_off"] == true && denoise["rows"][0]["name"] == "shape", "{denoise}");
    assert!(text(&ran).contains("it was cut off; see 4-denoise.log"), "{}", text(&ran));
}

#[test]
fn a_program_that_cannot_start_is_told_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let old = "#!/bin/sh\necho \"version 'GLIBC_9.9' not found\" >&2\nexit 1\n";
    let program = make_program(folder.path(), old);
    let settings = [("DG_GPU_BIN", program.as_path())];
    let ran = run(&script("run.sh"), folder.path(), &["--device", "cpu"], &settings);
    assert_eq!(ran.status.code(), Some(3), "{}", text(&ran));
    for words in ["cannot start (exit 1): version 'GLIBC_9.9' not found", "hint: it needs the glibc"] {
        assert!(text(&ran).contains(words), "{}", text(&ran));
    }
    assert!(!folder.path().join("gpu-results").exists());
}

#[test]
fn mistakes_are_said_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = [("DG_GPU_BIN", Path::new("nowhere"))];
    for (arguments, code, words) in [
        (["--device", "tpu"], 2, "--device is cuda or cpu, not tpu"),
        (["--gpu", "1"], 2, "unknown argument --gpu"),
        (["--device", "cpu"], 3, "there is no program nowhere"),
    ] {
        let ran = run(&script("run.sh"), folder.path(), &arguments, &nothing);
        assert_eq!(ran.status.code(), Some(code), "{}", text(&ran));
        assert!(text(&ran).contains(words), "{}", text(&ran));
    }
    // Without a GPU every part says what is missing, and none of them is good.
    if !Path::new("/dev/nvidiactl").exists() {
        let settings = [("DG_GPU_BIN", dg_testkit::program::bench_bin())];
        let ran = run(&script("run.sh"), folder.path(), &[], &settings);
        assert_eq!(ran.status.code(), Some(1), "{}", text(&ran));
        assert!(
            text(&ran).contains("no NVIDIA driver here") || text(&ran).contains("this build has no CUDA")
        );
    }
}
