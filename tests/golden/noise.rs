//! `torch.randn`, bit for bit.

use dg_flux::rng::Generator;

#[test]
fn every_reference_draw_is_equal() {
    let golden = dg_testkit::golden_json("rng_golden.json");
    let stored = dg_testkit::Golden::load("rng");
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() >= 56);
    for case in cases {
        let key = case["key"].as_str().expect("a key");
        let seed: i128 = case["seed"].as_str().expect("a seed").parse().expect("a number");
        let n = case["numel"].as_u64().expect("a number") as usize;
        let mut generator = Generator::new(seed as u64);
        let values = generator.randn(n);
        assert_eq!(dg_testkit::sha256_f32(&values), case["sha256_f32"].as_str().expect("a hash"), "{key}");
        let next: Vec<u32> = generator.randn(3).iter().map(|x| x.to_bits()).collect();
        let expected: Vec<u32> =
            stored.tensor(&format!("{key}.next3")).values.iter().map(|x| x.to_bits()).collect();
        assert_eq!(next, expected, "{key}: what is drawn next");
    }
}

#[test]
fn skipping_equals_drawing() {
    let (mut a, mut b) = (Generator::new(7), Generator::new(7));
    a.randn(4096);
    b.skip_randn(2048, 2);
    assert_eq!(a.randn(64), b.randn(64));
}
