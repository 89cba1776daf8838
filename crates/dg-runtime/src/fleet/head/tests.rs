use super::*;
use dg_net::identity::Role;
use std::time::{Duration, SystemTime};

/// A head with a node that nobody starts.
async fn head(folder: &Path) -> Head {
    let state = State::create(folder).unwrap();
    let ca = state.init_ca(true, SystemTime::now()).unwrap();
    state.issue(&ca, &Name::head(), Role::Head, true, SystemTime::now()).unwrap();
    let text = "[cluster]\nname = \"dies\"\nlisten = \"127.0.0.1:1\"\n\
                [[node]]\nname = \"a\"\nlocal = true\nlaunch = \"manual\"\n";
    let mut file = ClusterFile::read(Path::new("dies.toml"), text).unwrap();
    file.cluster.listen.port = Some(0);
    let (state_dir, program) = (folder.to_owned(), "/bin/false".into());
    Head::start(HeadArgs { file, state_dir, program, model: None, desk: None }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_dies_is_not_one_that_was_told_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let within = Duration::from_secs(10);
    let mut dies = head(&folder.path().join("one")).await;
    dies.actor.kill();
    let ended = tokio::time::timeout(within, dies.ended()).await.expect("in time");
    let error = ended.expect_err("it was killed");
    assert!(matches!(error, HeadError::Died) && error.exit() == ExitCode::Failed && error.hint().is_some());
    let mut ends = head(&folder.path().join("two")).await;
    ends.shut_down();
    tokio::time::timeout(within, ends.ended()).await.expect("in time").expect("it was told to");
}
