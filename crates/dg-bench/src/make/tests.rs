use super::*;
use dg_plan::{Part, known};
use safetensors::SafeTensors;
use std::collections::BTreeSet;

#[test]
fn full_models_have_the_published_sizes() {
    for (shape, published) in [(Shape::Schnell, known::flux_schnell()), (Shape::Dev, known::flux_dev())] {
        let sizes = shape.sizes();
        let weights = |names: Names| names.bytes(Dtype::BF16) as u64 / 2;
        assert_eq!(weights(names::transformer(&sizes)), published.transformer.parameters(), "{shape:?}");
        assert_eq!(weights(names::t5(&sizes.t5)), Part::T5.parameters(&published), "{shape:?}");
        assert_eq!(weights(names::clip(sizes.clip_vocab)), Part::Clip.parameters(&published), "{shape:?}");
        assert!(weights(names::vae()) > Part::VaeDecoder.parameters(&published), "its encoder is there, too");
        assert!((33_600_000_000..33_800_000_000).contains(&bytes(&sizes)), "{}", bytes(&sizes));
    }
}

#[test]
fn a_component_in_shards_has_all_of_its_tensors() {
    let mut sizes = Preset::Medium.sizes();
    (sizes.heads, sizes.double, sizes.single) = (1, 1, 1);
    sizes.t5.width = 64;
    let names = names::transformer(&sizes);
    let folder = tempfile::tempdir().unwrap();
    let most = 400_000;
    write(folder.path(), "model", &names, (Dtype::BF16, most), &json!({})).unwrap();
    let index = fs::read_to_string(folder.path().join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], names.bytes(Dtype::BF16));
    let files: BTreeSet<_> =
        index["weight_map"].as_object().unwrap().values().map(|file| file.as_str().unwrap()).collect();
    assert!(files.len() > 3, "{files:?}");
    let mut found = BTreeSet::new();
    for file in &files {
        let bytes = fs::read(folder.path().join(file)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert!(
            tensors.len() == 1
                || tensors.tensors().iter().map(|(_, t)| t.data().len()).sum::<usize>() <= most
        );
        for (name, tensor) in tensors.tensors() {
            assert_eq!(
                (tensor.dtype(), index["weight_map"][&name].as_str()),
                (Dtype::BF16, Some(*file)),
                "{name}"
            );
            let values = tensor.data().as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
            assert!(
                values.clone().all(|bits| bits & 0x7f80 != 0x7f80),
                "{name} has a value that is no number"
            );
            found.insert(name);
        }
    }
    assert_eq!(found, names.all().map(|(name, _)| name.to_owned()).collect());
}

#[test]
fn what_is_there_and_what_has_no_room_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model_index.json"), "{}").unwrap();
    let error = full(folder.path(), Shape::Dev).unwrap_err().to_string();
    assert!(error.contains("is not empty; hint: "), "{error}");
    let need = bytes(&Shape::Schnell.sizes());
    let error = check_room(folder.path(), need, need).unwrap_err().to_string();
    assert!(error.contains("33.7 GB free, the model takes 33.7 GB; hint: "), "{error}");
    check_room(folder.path(), need + need / 100, need).unwrap();
}

#[test]
fn what_an_interrupted_run_has_left_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("new/model");
    let mark = begin(&model).unwrap();
    fs::create_dir(model.join("transformer")).unwrap();
    fs::write(model.join("transformer/half"), "1").unwrap();
    // the next run
    assert_eq!(begin(&model).unwrap(), mark);
    let left: Vec<_> = fs::read_dir(&model).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, std::slice::from_ref(&mark));
    // a finished model is nobody's to remove
    fs::write(model.join("model_index.json"), "{}").unwrap();
    fs::remove_file(mark).unwrap();
    begin(&model).unwrap_err();
    assert!(model.join("model_index.json").is_file());
}

#[cfg(unix)]
#[test]
fn other_users_may_read_the_weights() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    save(&path, vec![Tensor::new("a", &[2], Dtype::BF16)]).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
}
