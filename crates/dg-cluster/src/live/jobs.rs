//! `dg-cluster jobs`.

use super::ask::Which;
use crate::args::Form;
use crate::date::utc;
use crate::failure::{Failure, print};
use crate::table::{columns, ranges};
use dg_runtime::fleet::client::{Ask, JobStatus};
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};

/// Shows jobs, and what happened to them.
pub(crate) fn jobs(which: &Which, events: bool, form: Form) -> Result<(), Failure> {
    super::runtime()?.block_on(async {
        let client = which.connect().await?;
        let jobs = client.jobs().await?;
        let told: Vec<Value> = client.ask(&Ask::Events).await?;
        match form {
            Form::Json => print(&json!({ "schema": SCHEMA, "jobs": jobs, "events": told }).to_string()),
            Form::Text => print(page(&jobs, &told, events).trim_end()),
        }
    })
}

fn page(jobs: &[JobStatus], events: &[Value], all: bool) -> String {
    let heading =
        ["job", "client", "priority", "state", "step", "attempts", "ranks", "layout", "seconds", "prompt"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    rows.extend(jobs.iter().map(|job| {
        vec![
            job.job.clone(),
            job.client.clone(),
            job.priority.to_string(),
            job.state.clone(),
            format!("{}/{}", job.step, job.steps),
            job.epochs.to_string(),
            ranges(&job.ranks),
            job.layout.clone(),
            format!("{:.1}", job.seconds),
            job.prompt.clone(),
        ]
    }));
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let is_shown = |event: &&Value| all || event["job"].is_string() || text(event, "kind") == "rank_lost";
    let mut lines = String::new();
    for event in events.iter().filter(is_shown) {
        let time = Duration::try_from_secs_f64(event["time"].as_f64().unwrap_or(0.0)).unwrap_or_default();
        lines.push_str(&format!("{}  {}\n", utc(UNIX_EPOCH + time), text(event, "message")));
    }
    format!("{}\n{lines}", columns(&rows, &[2, 4, 5, 8]))
}

const SCHEMA: u32 = 1;
