//! Rows → requests, file names and batches. Pure.

use crate::names;
use crate::prompts::{ROWS_MAX, Row, RowError};
use dg_config::{Key, Origin, Settings, Value};
use dg_core::{
    BadNumber, BadSize, GenerateRequest, ImageSize, NoiseIndex, Scale, Seed, SequenceLength, Steps,
};
use std::collections::BTreeSet;

/// One picture to make.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    /// File name in the output folder.
    pub(crate) file: String,
    /// What to draw.
    pub(crate) request: GenerateRequest,
    /// Whether the seed was drawn at random, so that a finished picture may have any.
    pub(crate) any_seed: bool,
}

/// All pictures of a run, in the order of the prompts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// The pictures.
    pub(crate) pictures: Vec<Planned>,
    /// What the user should know.
    pub(crate) warnings: BTreeSet<String>,
}

/// Where the seeds of a run begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BaseSeed {
    /// Seed of picture 0.
    pub(crate) seed: Seed,
    /// Whether it was drawn at random.
    pub(crate) drawn: bool,
}

/// File names of all pictures, `num_images_per_prompt` for every row, or every row whose name is
/// taken. Needs no model.
pub(crate) fn file_names(rows: &[Row], settings: &Settings) -> Result<Vec<String>, Vec<RowError>> {
    let (images, extension) = (settings.integer(Key::NumImagesPerPrompt), extension(settings));
    let pictures = (rows.len() as u64).saturating_mul(images);
    if pictures > ROWS_MAX as u64 {
        let message = format!("{pictures} pictures are more than {ROWS_MAX} for one run");
        return Err(vec![RowError { line: rows.last().map_or(0, |r| r.line), message }]);
    }
    let numbered = |i: usize, row: &Row, sub: u64| {
        names::file_name(row.name.as_deref(), i, (images > 1).then_some(sub), extension)
    };
    let of_row = |(i, row)| (0..images).map(move |sub| numbered(i, row, sub));
    let files: Vec<String> = rows.iter().enumerate().flat_map(of_row).collect();
    let row = |picture: usize| &rows[picture / images as usize];
    let taken = names::duplicates(files.iter().map(String::as_str)).into_iter().map(|(second, first)| {
        let message = format!("{} is the file of line {} already", files[second], row(first).line);
        RowError { line: row(second).line, message }
    });
    let taken: Vec<RowError> = taken.collect();
    if taken.is_empty() { Ok(files) } else { Err(taken) }
}

/// The requests of all rows. `template` has what no setting can say (a recorded request's own noise
/// levels, for instance).
pub(crate) fn plan(
    rows: &[Row],
    files: Vec<String>,
    settings: &Settings,
    base: BaseSeed,
    template: Option<&GenerateRequest>,
) -> Result<Plan, Vec<RowError>> {
    let images = settings.integer(Key::NumImagesPerPrompt) as usize;
    let mut plan = Plan::default();
    let mut errors = Vec::new();
    let mut files = files.into_iter();
    for (i, row) in rows.iter().enumerate() {
        let request = match request(row, settings, template, &mut plan.warnings) {
            Ok(request) => request,
            Err(message) => {
                errors.push(RowError { line: row.line, message });
                continue;
            }
        };
        let own_seed = row.overrides.iter().find_map(|(key, value)| match (key, value) {
            (Key::Seed, Value::Integer(n)) => Some(Seed(*n)),
            _ => None,
        });
        for (sub, file) in files.by_ref().take(images).enumerate() {
            let global = base.seed.plus((i * images + sub) as u64);
            let seed = own_seed.map_or(global, |seed| seed.plus(sub as u64));
            if let Some(alias) = seed.alias() {
                plan.warn_alias(seed, alias);
            }
            let any_seed = base.drawn && own_seed.is_none();
            plan.pictures.push(Planned {
                file,
                request: GenerateRequest { seed, ..request.clone() },
                any_seed,
            });
        }
    }
    if errors.is_empty() { Ok(plan) } else { Err(errors) }
}

impl Plan {
    /// The first seed above 2³² − 1 of a run is worth a warning, the others say nothing new.
    fn warn_alias(&mut self, seed: Seed, alias: u32) {
        let about_seed = |w: &String| w.starts_with(SEED_WARNING);
        if !self.warnings.iter().any(about_seed) {
            let rule = "seeds count modulo 2^32";
            self.warnings
                .insert(format!("{SEED_WARNING}{} gives the same noise as seed {alias}: {rule}", seed.0));
        }
    }
}

/// Batches of up to `size` of the pictures `todo`, as positions in `pictures`. Only neighbours that
/// can be computed together are put together, so the order stays.
pub(crate) fn batches(pictures: &[Planned], todo: &[usize], size: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for &i in todo {
        match batches.last_mut() {
            Some(batch)
                if batch.len() < size && pictures[batch[0]].request.batches_with(&pictures[i].request) =>
            {
                batch.push(i);
            }
            _ => batches.push(vec![i]),
        }
    }
    batches
}

/// Extension of the output format.
pub(crate) fn extension(settings: &Settings) -> &str {
    match settings.text(Key::OutputFormat) {
        Some("jpeg") => "jpg",
        Some(format) => format,
        None => "png",
    }
}

fn request(
    row: &Row,
    settings: &Settings,
    template: Option<&GenerateRequest>,
    warnings: &mut BTreeSet<String>,
) -> Result<GenerateRequest, String> {
    let own = |key| row.overrides.iter().rev().find(|(k, _)| *k == key).map(|(_, value)| value);
    let integer = |key| match own(key) {
        Some(Value::Integer(n)) => *n as u32,
        _ => settings.integer(key) as u32,
    };
    let number = |key| match own(key) {
        Some(Value::Number(x)) => *x,
        _ => settings.number(key),
    };
    let flagged = |key| settings.origin(key) == Some(&Origin::Flag);
    let kept = |key: Key| template.filter(|_| !flagged(key));
    let negative = match own(Key::NegativePrompt) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => match kept(Key::NegativePrompt) {
            Some(recorded) => recorded.negative_prompt.clone(),
            None => settings.text(Key::NegativePrompt).map(Into::into),
        },
    };
    let (size, rounded) =
        ImageSize::fit(integer(Key::Width), integer(Key::Height)).map_err(|e: BadSize| e.to_string())?;
    warnings.extend(rounded.map(|r| r.to_string()));
    let bad = |e: BadNumber| e.to_string();
    Ok(GenerateRequest {
        prompt: row.prompt.clone(),
        prompt_2: kept(Key::Prompt).and_then(|t| t.prompt_2.clone()),
        negative_prompt: negative,
        size,
        num_inference_steps: Steps::try_from(integer(Key::NumInferenceSteps)).map_err(bad)?,
        sigmas: kept(Key::NumInferenceSteps).and_then(|t| t.sigmas.clone()),
        guidance_scale: Scale::try_from(number(Key::GuidanceScale)).map_err(bad)?,
        true_cfg_scale: Scale::try_from(number(Key::TrueCfgScale)).map_err(bad)?,
        max_sequence_length: SequenceLength::try_from(integer(Key::MaxSequenceLength)).map_err(bad)?,
        seed: Seed(0),
        noise_index: kept(Key::Seed).map_or_else(NoiseIndex::default, |t| t.noise_index),
    })
}

const SEED_WARNING: &str = "seed ";

#[cfg(test)]
mod tests {
    use super::*;
    use dg_config::Layers;

    fn settings(flags: &[(Key, &str)]) -> Settings {
        let mut layers = Layers::default();
        layers.add_flags(flags.iter().map(|(key, text)| (*key, key.setting().parse(text).unwrap())));
        layers.resolve()
    }

    fn row(line: usize, overrides: &[(Key, &str)]) -> Row {
        let overrides = overrides.iter().map(|(key, text)| (*key, key.setting().parse(text).unwrap()));
        Row { line, prompt: format!("p{line}"), name: None, overrides: overrides.collect() }
    }

    fn make(rows: &[Row], settings: &Settings, drawn: bool) -> Plan {
        let files = file_names(rows, settings).unwrap();
        plan(rows, files, settings, BaseSeed { seed: Seed(10), drawn }, None).unwrap()
    }

    #[test]
    fn seeds_count_globally_and_from_a_rows_own() {
        let s = settings(&[(Key::NumImagesPerPrompt, "2")]);
        let plan = make(&[row(1, &[]), row(2, &[(Key::Seed, "7")]), row(3, &[])], &s, true);
        let seeds: Vec<_> = plan.pictures.iter().map(|p| (p.request.seed.0, p.any_seed)).collect();
        let expect = [(10, true), (11, true), (7, false), (8, false), (14, true), (15, true)];
        assert_eq!(seeds, expect);
        assert_eq!(plan.pictures[3].file, "000001_01.png");
    }

    #[test]
    fn rows_override_settings() {
        let s = settings(&[(Key::Height, "64"), (Key::NegativePrompt, "n")]);
        let plan =
            make(&[row(1, &[(Key::Height, "100"), (Key::GuidanceScale, "2")]), row(2, &[])], &s, false);
        let (a, b) = (&plan.pictures[0].request, &plan.pictures[1].request);
        assert_eq!((a.size.height(), b.size.height()), (96, 64));
        assert_eq!((a.guidance_scale.value(), b.guidance_scale.value()), (2.0, 3.5));
        assert_eq!(a.negative_prompt.as_deref(), Some("n"));
        assert!(plan.warnings.iter().any(|w| w.contains("1024x100")), "{:?}", plan.warnings);
    }

    #[test]
    fn duplicate_names_are_all_reported() {
        let named = |line, name: &str| Row { name: Some(name.into()), ..row(line, &[]) };
        let rows = [
            named(1, "a"),
            named(2, "a.png"),
            named(5, "b"),
            named(9, "a"),
            named(10, "000005"),
            row(11, &[]),
        ];
        let e = file_names(&rows, &settings(&[])).unwrap_err();
        assert_eq!(e.iter().map(|e| e.line).collect::<Vec<_>>(), [2, 9, 11]);
        assert!(e[0].message.contains("line 1"), "{}", e[0].message);
    }

    #[test]
    fn only_like_neighbours_share_a_batch() {
        let s = settings(&[]);
        let wide = [(Key::Width, "512")];
        let rows = [row(1, &[]), row(2, &[]), row(3, &wide), row(4, &[]), row(5, &[]), row(6, &[])];
        let plan = make(&rows, &s, false);
        let all: Vec<usize> = (0..6).collect();
        assert_eq!(batches(&plan.pictures, &all, 2), [vec![0, 1], vec![2], vec![3, 4], vec![5]]);
        assert_eq!(batches(&plan.pictures, &all, 1).len(), 6);
        assert_eq!(batches(&plan.pictures, &[0, 1, 3, 4, 5], 64), [vec![0, 1, 3, 4, 5]]);
    }

    #[test]
    fn big_seeds_warn_once() {
        let s = settings(&[]);
        let rows = [row(1, &[(Key::Seed, "4294967296")]), row(2, &[(Key::Seed, "4294967297")])];
        let plan = make(&rows, &s, false);
        assert_eq!(plan.warnings.len(), 1);
        assert!(plan.warnings.first().unwrap().contains("seed 0"));
    }

    #[test]
    fn a_template_keeps_what_no_flag_changed() {
        let (size, _) = ImageSize::fit(64, 64).unwrap();
        let mut recorded = GenerateRequest::new("x", size, Seed(3));
        recorded.sigmas = Some(vec![1.0, 0.5]);
        recorded.prompt_2 = Some("t5".into());
        let of = |flags: &[(Key, &str)]| {
            request(&row(0, &[]), &settings(flags), Some(&recorded), &mut BTreeSet::new()).unwrap()
        };
        assert_eq!(of(&[]).sigmas, recorded.sigmas);
        let changed = of(&[(Key::NumInferenceSteps, "3"), (Key::Prompt, "y")]);
        assert_eq!((changed.sigmas, changed.prompt_2), (None, None));
    }
}
