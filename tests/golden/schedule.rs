//! Sigmas and timesteps, bit for bit.

use super::common;
use dg_flux::schedule::Schedule;
use serde_json::Value;

#[test]
fn every_reference_schedule_is_equal() {
    let golden = dg_testkit::golden_json("schedule_golden.json");
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() >= 72);
    let (dev, schnell) = (common::repo("tiny-dev"), common::repo("tiny-schnell"));
    for case in cases {
        let repo = if case["kind"] == "dev" { &dev } else { &schnell };
        let custom: Option<Vec<f64>> = case
            .get("custom_sigmas")
            .and_then(Value::as_array)
            .map(|l| l.iter().filter_map(Value::as_f64).collect());
        let tokens = case["image_seq_len"].as_u64().expect("tokens") as usize;
        let steps = case["steps"].as_u64().expect("steps") as usize;
        let ours = Schedule::new(&repo.config().schedule, steps, custom.as_deref(), tokens);
        let hex: String = ours.sigmas.iter().map(|s| format!("{:08x}", s.to_bits())).collect();
        assert_eq!(hex, case["sigmas_hex"].as_str().expect("bits"), "{case}");
        let times: Vec<f32> = (0..ours.steps()).map(|i| ours.timestep(i)).collect();
        let expected: Vec<f32> = case["timesteps"]
            .as_array()
            .expect("timesteps")
            .iter()
            .map(|t| t.as_f64().expect("a time") as f32)
            .collect();
        assert_eq!(times, expected, "{case}");
    }
}
