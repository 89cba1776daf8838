//! Jobs that are given up: whoever waits is told what it was.

use crate::pictures::{Drawing, ULYSSES_4, expect_same};
use crate::rig::Setting;
use std::time::Duration;

#[test]
fn a_job_that_is_given_up_names_the_rank_the_node_the_step_and_its_last_words() {
    let setting = Setting::two_by_two().failure("epochs_without_progress = 1\n");
    let rig = setting.env("DG_FAILPOINT", "kill@1:0").up();
    let drawing = Drawing::small(8, 1).degrees(ULYSSES_4);
    let drawn = rig.start(&drawing).ended();
    let said = &drawn.output.stderr;
    println!("{said}");
    assert_eq!(drawn.output.status, Some(1), "{said}\n{}", rig.story());
    let parts = [
        "given up after 1 attempt at step 0",
        "the process of rank 1 (node left) ended",
        "failpoint kill@1:0",
        "(signal 9)",
        "hint: ",
    ];
    for part in parts {
        assert!(said.contains(part), "no `{part}` in\n{said}");
    }
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    assert!(drawn.pictures.is_empty());
    let job = rig.jobs().remove(0);
    assert_eq!((job.state.as_str(), job.epochs, job.step), ("failed", 1, 0), "{job:?}");
    assert!(job.error.as_ref().is_some_and(|error| error.contains("rank 1 (node left)")), "{job:?}");
    // The rank is started again, without the failpoint.
    rig.idle(Duration::from_secs(20));
    expect_same(&rig.draw(&drawing).pictures, &drawing.serial().undisturbed(), "afterwards");
}
