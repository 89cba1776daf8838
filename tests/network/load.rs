//! Ten thousand prompts that wait.

use crate::rig::{Rig, alone, flag, run};
use dg_core::{GenerateRequest, ImageSize, Seed, Steps};
use dg_plan::{Ask, Layout};
use dg_runtime::fleet::client::{CLIENT, HeadClient, Options, Status};
use dg_runtime::{Cluster, EngineOptions, JobError, Parallel};
use std::time::{Duration, Instant};

#[test]
fn ten_thousand_prompts_wait_in_little_memory_and_status_answers_at_once() {
    let _alone = alone();
    let rig = Rig::local();
    let count = flag("DG_PROMPTS", 10_000);
    run(async {
        let connect =
            async || HeadClient::of_state(&rig.state(), CLIENT, Options::dialer()).await.expect("a head");
        let (client, watcher) = (connect().await, connect().await);
        let card = client.model(None).await.expect("the nodes have it");
        let layout = Layout { ulysses: 4, ..Layout::SERIAL };
        let parallel = Parallel { ask: Ask::layout(layout), ..Parallel::default() };
        let cluster =
            Cluster::connect(client.clone(), None, card, EngineOptions { parallel, ..Default::default() });
        let before = rig.memory().0;
        let begin = Instant::now();
        let request = |number: usize| {
            let (size, _) = ImageSize::fit(64, 64).expect("a size");
            let mut request = GenerateRequest::new(
                format!("a picture of number {number}, in oil"),
                size,
                Seed(number as u64),
            );
            request.num_inference_steps = Steps::try_from(4).expect("within limits");
            request
        };
        let jobs: Vec<_> = (0..count).map(|number| cluster.submit(vec![request(number)])).collect();
        let (burst, slowest, status) = queued(&watcher, count).await;
        let (took, full) = (begin.elapsed(), rig.memory().0);
        // The client that has handed them in is not held up by them.
        let asked = Instant::now();
        let same = client.status().await.expect("an answer beside the jobs");
        let own = asked.elapsed();
        println!(
            "{count} prompts: {} waited after {took:.2?}; slowest status {burst:.1?} while they came, {slowest:.1?} while \
             they waited, {own:.1?} on the connection that handed them in; head {} MiB before, {} MiB with them",
            status.waiting,
            before >> 20,
            full >> 20
        );
        assert!(same.waiting + same.running > 0);
        assert!(slowest < Duration::from_millis(5 * 100) && own < Duration::from_millis(5 * 100));
        assert!(full <= 256 << 20, "{full} bytes");
        let begin = Instant::now();
        jobs.iter().for_each(|job| job.cancel());
        let (mut done, mut cancelled) = (0, 0);
        for job in jobs {
            match job.finish().await {
                Ok(_) => done += 1,
                Err(JobError::Cancelled) => cancelled += 1,
                Err(error) => panic!("{error}"),
            }
        }
        let until = Instant::now() + Duration::from_secs(30);
        while watcher.status().await.is_ok_and(|s| s.waiting + s.running > 0) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("{done} were done, {cancelled} cancelled after {:.2?}", begin.elapsed());
        let status = watcher.status().await.expect("a head");
        assert_eq!((status.waiting, status.running), (0, 0), "{status:?}");
        assert!(cancelled > count / 2);
        println!("head {} MiB at the end", rig.memory().0 >> 20);
    });
    let small = crate::rig::SMALL;
    assert!(rig.pictures("after", small) == rig.serial(small), "it works as before");
}

/// Asks again and again until nearly all wait, and for two seconds more; gives the slowest answer before and after.
async fn queued(watcher: &HeadClient, count: usize) -> (Duration, Duration, Status) {
    let until = Instant::now() + Duration::from_secs(60);
    let (mut burst, mut slowest, mut full) = (Duration::ZERO, Duration::ZERO, None::<Instant>);
    loop {
        let begin = Instant::now();
        let status = watcher.status().await.expect("an answer");
        let took = begin.elapsed();
        match full {
            None => burst = burst.max(took),
            Some(_) => slowest = slowest.max(took),
        }
        if status.waiting + status.running + DONE_MEANWHILE >= count {
            if full.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(2) {
                return (burst, slowest, status);
            }
        } else {
            assert!(Instant::now() < until, "{} of {count} wait", status.waiting);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Jobs that may be over before the last is handed in.
const DONE_MEANWHILE: usize = 50;
