//! From settings to a plan that can run: input, model, requests, what is finished already.

use crate::args::Launch;
use crate::engine::{self, EngineOptions, MemoryNeed, Model};
use crate::failure::Failure;
use crate::hub::HubAsk;
use crate::layout::{self, Spread};
use crate::output::resume::{self, Finished, Wanted};
use crate::output::write;
use crate::plan::{self, BaseSeed, Plan};
use crate::prompts::{self, Parsed, Row, RowError};
use crate::remote::Remote;
use crate::{log, machine, models, recorded, setup};
use dg_config::{Key, Layers, Origin, Settings};
use dg_core::{GenerateRequest, ModelId, ModelShape, Recipe, Seed};
use dg_flux::ModelRepo;
use dg_plan::Passes;
use dg_runtime::asked;
use std::path::{Path, PathBuf};

/// Everything that is decided before the model is loaded, without the model itself.
pub(crate) struct Prepared {
    /// All settings, the model's own defaults included.
    pub(crate) settings: Settings,
    /// The model.
    pub(crate) model: ModelId,
    /// What the pictures to make will need.
    pub(crate) need: MemoryNeed,
    /// How it will compute.
    pub(crate) options: EngineOptions,
    /// What to make.
    pub(crate) plan: Plan,
    /// How it is spread over ranks.
    pub(crate) spread: Spread,
    /// What is there already, by picture.
    pub(crate) finished: Vec<Option<Finished>>,
    /// Where the pictures go.
    pub(crate) folder: PathBuf,
    /// Where the seeds begin.
    pub(crate) base: BaseSeed,
}

/// What pictures are made from.
enum Input {
    Prompt(String),
    File(String),
    Picture(String, Box<Recipe>),
}

/// Decides everything; reads files, writes nothing but the removal of stale temporary files.
pub(crate) fn prepare(
    mut layers: Layers,
    launch: Launch,
    remote: Option<Remote>,
) -> Result<(Prepared, Model), Failure> {
    let settings = layers.resolve();
    if remote.is_none() {
        setup::check_machine(&settings)?;
    }
    layout::check_product(&settings)?;
    let input = input(&settings)?;
    if let Input::Picture(_, recipe) = &input {
        layers.add_picture(recipe);
    }
    let settings = layers.resolve();
    let rows = rows(&input, &settings)?;
    if settings.is_asked(Key::OutputNameColumn) && rows.iter().all(|r| r.name.is_none()) {
        let column = settings.text(Key::OutputNameColumn).unwrap_or_default();
        log::warn_once(format!("no row has a name in column `{column}`: pictures are numbered"));
    }
    let files = plan::file_names(&rows, &settings).map_err(|e| refuse(&input, &e))?;
    let model = model(&input, &settings, remote)?;
    let guidance = model.shape().transformer.guidance_embeds;
    layers.add_model(guidance, model.defaults()).map_err(|e| {
        Failure::config(format!("model {}: {e}", model.id().id)).hint("correct the file, or remove it")
    })?;
    let settings = layers.resolve();
    let base = base_seed(&settings)?;
    let template = match &input {
        Input::Picture(_, recipe) => Some(&recipe.request),
        _ => None,
    };
    let plan = plan::plan(&rows, files, &settings, base, template).map_err(|e| refuse(&input, &e))?;
    plan.warnings.iter().for_each(log::warn_once);
    let device = model.device(&settings);
    let dtype = asked::dtype(&settings, device);
    let requests = plan.pictures.iter().map(|p| &p.request);
    let spread = layout::spread(
        &settings,
        &model.machine(),
        model.shape(),
        (dtype, model.repo().map(ModelRepo::held)),
        requests,
    )?;
    if model.repo().is_some() {
        setup::check_gpus(&settings, spread.ranks())?;
        announce(&settings, &spread, launch);
    }
    spread.warnings().into_iter().for_each(log::warn_once);
    warn_idle(&settings, &model, &spread);
    let options = engine::options(
        (device, asked::asked_device(&settings), dtype),
        (asked::time_dtype(&settings), asked::tf32(&settings, device)),
        setup::threads(&settings, spread.ranks() as u64),
        settings.switch_if_any(Key::EnableVaeTiling),
        parallel(&settings, &spread),
    );
    let folder = PathBuf::from(settings.text(Key::OutputDir).unwrap_or("output"));
    let (id, need) = (model.id().clone(), MemoryNeed::default());
    let mut prepared =
        Prepared { settings, model: id, need, options, plan, spread, finished: Vec::new(), folder, base };
    prepared.finished = prepared.look_for_finished(model.shape());
    let Some(repo) = model.repo() else { return Ok((prepared, model)) };
    prepared.need = prepared.estimate(repo);
    let need = prepared.need.total();
    let is_short = |have: machine::Memory| have.available < need.saturating_add(need / 4);
    prepared.options.release_encoders = machine::memory().is_some_and(is_short);
    Ok((prepared, model))
}

/// What the engine is told about ranks.
fn parallel(settings: &Settings, spread: &Spread) -> engine::Parallel {
    engine::Parallel {
        ask: spread.ask.clone(),
        request_images: settings.integer(Key::NumImagesPerPrompt) as usize,
        trace: settings.text(Key::Trace).is_some() || settings.switch(Key::Debug),
        ..engine::Parallel::default()
    }
}

/// Says what nobody asked for: which layout was found, and that ranks are on the CPU.
fn announce(settings: &Settings, spread: &Spread, launch: Launch) {
    let tell = |text: String| {
        if !settings.switch(Key::Quiet) {
            log::note(&text);
        }
    };
    let ranks = spread.ranks();
    if ranks > 1 && settings.text(Key::Device) == Some("auto") {
        let kind = if launch == Launch::Threads { "threads" } else { "processes" };
        tell(format!("no GPU in this build: {ranks} CPU ranks, which are {kind}, are used"));
    }
    if let Some(search) = &spread.search {
        tell(format!("{ranks} ranks as `{}`: {}", spread.ask.layout, search.reason));
    }
}

impl Prepared {
    /// Positions of the pictures that must be made.
    pub(crate) fn todo(&self) -> Vec<usize> {
        (0..self.plan.pictures.len()).filter(|i| self.finished[*i].is_none()).collect()
    }

    /// The file of a picture.
    pub(crate) fn path(&self, picture: usize) -> PathBuf {
        self.folder.join(&self.plan.pictures[picture].file)
    }

    /// What determines the pixels of a picture.
    pub(crate) fn recipe(&self, request: &GenerateRequest, vae_tiling: bool) -> Recipe {
        Recipe {
            request: request.clone(),
            model: self.model.clone(),
            dtype: self.options.dtype,
            time_dtype: self.options.time_dtype,
            tf32: self.options.tf32,
            vae_tiling,
            pipefusion: self.spread.pipefusion(request),
        }
    }

    /// Whether this process computes on a GPU.
    pub(crate) fn is_on_gpu(&self) -> bool {
        self.options.device == dg_runtime::DeviceKind::Cuda
    }

    /// Most pictures that one replica computes together.
    pub(crate) fn batch_size(&self) -> usize {
        let replicas = self.spread.ask.layout.dp as usize;
        (self.settings.integer(Key::BatchSize) as usize).div_ceil(replicas)
    }

    /// Refuses a run for which the memory is too small.
    pub(crate) fn check_memory(&self) -> Result<(), Failure> {
        if self.is_on_gpu() {
            return self.check_gpu(dg_runtime::memory::free_on_gpu());
        }
        let (need, Some(have)) = (self.need, machine::memory()) else { return Ok(()) };
        if need.least() <= have.available {
            return Ok(());
        }
        if need.streamed_least() <= have.available {
            log::warn_once(format!(
                "the model takes {} without its text encoders, and {} are free: weights that do not fit are read from \
                 the disk again in each step",
                machine::bytes(need.least()),
                machine::bytes(have.available),
            ));
            return Ok(());
        }
        let limit = match have.limit {
            machine::Limit::System => "",
            machine::Limit::ControlGroup => " in this control group",
        };
        let ranks = match self.spread.ranks() {
            1 => String::new(),
            n => format!(" of {n} ranks"),
        };
        let message = format!(
            "not enough memory: about {} needed ({} of weights at a time + {} activations{ranks}, \
             pictures decoded in bands), {} free{limit}",
            machine::bytes(need.streamed_least()),
            machine::bytes(need.window),
            machine::bytes(need.activations_least),
            machine::bytes(have.available),
        );
        if self.settings.switch(Key::Force) {
            log::warn_once(message);
            return Ok(());
        }
        let usual = "use a smaller --batch_size or picture, --dtype bfloat16 or --enable_vae_tiling, or try anyway with --force";
        Err(Failure::infeasible(message).hint(match self.spread.remedies() {
            Some(remedies) => format!("{usual}; {remedies}"),
            None => usual.into(),
        }))
    }

    /// A GPU holds all weights; the host only hands them on.
    fn check_gpu(&self, free: Option<u64>) -> Result<(), Failure> {
        let need = self.need.weights.saturating_add(self.need.activations_least);
        let Some(free) = free.filter(|free| *free < need) else { return Ok(()) };
        let message = format!(
            "not enough memory on the GPU: about {} needed ({} of weights + {} activations, pictures decoded in bands), \
             {} free",
            machine::bytes(need),
            machine::bytes(self.need.weights),
            machine::bytes(self.need.activations_least),
            machine::bytes(free),
        );
        if self.settings.switch(Key::Force) {
            log::warn_once(message);
            return Ok(());
        }
        Err(Failure::infeasible(message).hint(
            "use a smaller --batch_size or picture, several GPUs (docs/gpu.md), --device cpu, or try anyway with --force",
        ))
    }

    fn estimate(&self, repo: &ModelRepo) -> MemoryNeed {
        let requests = self.todo().into_iter().map(|i| self.plan.pictures[i].request.clone());
        self.spread.need(repo, &self.options, &requests.collect::<Vec<_>>(), self.batch_size())
    }

    fn look_for_finished(&self, shape: &ModelShape) -> Vec<Option<Finished>> {
        let pictures = &self.plan.pictures;
        if self.settings.switch(Key::NoResume) || !self.folder.is_dir() {
            return vec![None; pictures.len()];
        }
        let recorded = !self.settings.switch(Key::NoMetadata);
        let wanted = |(i, p): (usize, &plan::Planned)| {
            let tiling = engine::tiles(shape, p.request.size, self.options.vae_tiling);
            let recipe = self.recipe(&p.request, tiling);
            Wanted { path: self.path(i), recipe, any_seed: p.any_seed, recorded }
        };
        let wanted: Vec<Wanted> = pictures.iter().enumerate().map(wanted).collect();
        resume::finished(&wanted, machine::physical_cores().get())
    }
}

/// Makes the folder of the pictures and removes what killed runs left in it.
pub(crate) fn make_folder(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| {
        let message = format!("cannot make the folder {}: {e}", folder.display());
        let failure = match e.kind() {
            std::io::ErrorKind::StorageFull => Failure::failed(message),
            _ => Failure::config(message),
        };
        failure.hint("check --output_dir")
    })?;
    write::probe(folder).map_err(|e| {
        Failure::config(format!("cannot write in the folder {}: {e}", folder.display()))
            .hint("check --output_dir")
    })?;
    let swept = write::sweep(folder);
    if swept > 0 {
        tracing::info!("{swept} temporary files of a killed run removed from {}", folder.display());
    }
    Ok(())
}

/// What was asked for. Flags make the environment's inputs moot; a prompt may stand beside a picture.
fn input(settings: &Settings) -> Result<Input, Failure> {
    let keys = [Key::Prompt, Key::PromptsFile, Key::FromImage];
    let by_flag = keys.iter().any(|key| settings.origin(*key) == Some(&Origin::Flag));
    let given = |key: Key| {
        let counts = !by_flag || settings.origin(key) == Some(&Origin::Flag);
        settings.text(key).filter(|_| counts).map(str::to_string)
    };
    match keys.map(given) {
        [None, None, None] => {
            Err(Failure::usage("no prompt")
                .hint("give --prompt TEXT, --prompts_file FILE or --from_image FILE"))
        }
        [Some(_), Some(_), _] => {
            Err(Failure::usage("--prompt and --prompts_file exclude each other")
                .hint("leave one of them out"))
        }
        [_, Some(_), Some(_)] => Err(Failure::usage("--from_image and --prompts_file exclude each other")
            .hint("leave one of them out")),
        [_, None, Some(path)] => {
            let recipe = recorded::read(&path)?;
            Ok(Input::Picture(path, Box::new(recipe)))
        }
        [None, Some(path), None] => Ok(Input::File(path)),
        [Some(prompt), None, None] => Ok(Input::Prompt(prompt)),
    }
}

/// The rows; all bad ones are refused at once, those whose name is taken too.
fn rows(input: &Input, settings: &Settings) -> Result<Vec<Row>, Failure> {
    let row = |prompt: &str| Ok(vec![Row { prompt: prompt.into(), ..Row::default() }]);
    let path = match input {
        Input::Prompt(prompt) => return row(prompt),
        Input::Picture(..) => return row(settings.text(Key::Prompt).unwrap_or_default()),
        Input::File(path) => path,
    };
    let column = settings.text(Key::OutputNameColumn).unwrap_or("name");
    let Parsed { rows, mut errors, .. } = prompts::read(path, column)?;
    if errors.is_empty() {
        return Ok(rows);
    }
    // numbers shift when bad rows are left out: only names can be compared
    let named: Vec<Row> = rows.into_iter().filter(|r| r.name.is_some()).collect();
    errors.extend(plan::file_names(&named, settings).err().unwrap_or_default());
    Err(refuse(input, &errors))
}

fn refuse(input: &Input, errors: &[RowError]) -> Failure {
    match (input, errors) {
        (Input::File(path), _) => prompts::refuse_rows(prompts::shown(path), errors),
        (_, errors) => {
            let messages: Vec<&str> = errors.iter().map(|e| e.message.as_str()).collect();
            Failure::usage(messages.join("; ")).hint("see `diffgentor t2i --help`")
        }
    }
}

fn model(input: &Input, settings: &Settings, remote: Option<Remote>) -> Result<Model, Failure> {
    match remote {
        Some(remote) => {
            compare(input, settings, &remote.card.id)?;
            Ok(Model::There(Box::new(remote)))
        }
        None => model_here(input, settings).map(|repo| Model::Here(Box::new(repo))),
    }
}

fn model_here(input: &Input, settings: &Settings) -> Result<ModelRepo, Failure> {
    let dry = settings.switch(Key::DryRun);
    let ask = HubAsk {
        revision: settings.text(Key::Revision),
        // a dry run downloads nothing
        local_files_only: settings.switch(Key::LocalFilesOnly) || dry,
        silent: settings.switch(Key::Quiet) || settings.switch(Key::NoProgress),
    };
    let flagged = settings.origin(Key::ModelName) == Some(&Origin::Flag);
    let name = settings.text(Key::ModelName).unwrap_or(models::DEMO);
    let open = |name: &str| models::open(name, &ask).map_err(|e| blame_dry_run(e, settings));
    let Input::Picture(_, recipe) = input else { return open(name) };
    let repo = match flagged {
        true => open(name)?,
        false => models::open_recorded(recipe, &ask).map_err(|e| blame_dry_run(e, settings))?,
    };
    compare(input, settings, repo.id())?;
    Ok(repo)
}

/// Refuses another model than that of the picture which is made again.
fn compare(input: &Input, settings: &Settings, have: &ModelId) -> Result<(), Failure> {
    let Input::Picture(path, recipe) = input else { return Ok(()) };
    if have.hash == recipe.model.hash {
        return Ok(());
    }
    let message = format!(
        "the picture {path} was made with another model than {}: hash {:.12}…, not {:.12}…",
        have.id, recipe.model.hash, have.hash
    );
    let flagged = settings.origin(Key::ModelName) == Some(&Origin::Flag);
    if !flagged && !settings.switch(Key::Force) {
        return Err(Failure::config(message).hint("name the model with --model_name, or use --force"));
    }
    log::warn_once(message);
    Ok(())
}

/// A dry run asks the hub for nothing, though nobody said `--local_files_only`.
fn blame_dry_run(failure: Failure, settings: &Settings) -> Failure {
    let about_flag = failure.hint.as_deref().is_some_and(|h| h.contains("--local_files_only"));
    if !about_flag || !settings.switch(Key::DryRun) || settings.switch(Key::LocalFilesOnly) {
        return failure;
    }
    failure.hint("a dry run downloads nothing: run once without --dry_run, or name a folder")
}

fn base_seed(settings: &Settings) -> Result<BaseSeed, Failure> {
    if let Some(seed) = settings.integer_if_any(Key::Seed) {
        return Ok(BaseSeed { seed: Seed(seed), drawn: false });
    }
    // 32 bits: more would only be counted modulo 2^32
    let mut bytes = [0; 4];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if filled != Ok(bytes.len()) {
        return Err(Failure::failed("the system gave no random seed").hint("give one with --seed"));
    }
    Ok(BaseSeed { seed: Seed(u32::from_le_bytes(bytes).into()), drawn: true })
}

/// Settings that somebody asked for and that change nothing.
fn warn_idle(settings: &Settings, model: &Model, spread: &Spread) {
    // a picture records every setting, whether it had an effect or not
    let is_asked = |key| settings.is_asked(key) && !matches!(settings.origin(key), Some(Origin::Picture));
    if is_asked(Key::GuidanceScale) && !model.shape().transformer.guidance_embeds {
        log::warn_once(format!("guidance_scale has no effect: {} has no guidance input", model.id().id));
    }
    if is_asked(Key::NegativePrompt) && settings.number(Key::TrueCfgScale) <= 1.0 {
        log::warn_once("negative_prompt has no effect while true_cfg_scale is not above 1");
    }
    // what `config show` printed asks for nothing
    let other = |key: Key| is_asked(key) && settings.integer_if_any(key).is_some_and(|n| n != 1);
    let is_stale = spread.plans.iter().any(|plan| plan.passes == Passes::Patches);
    for key in [Key::NumPipelinePatch, Key::WarmupSteps] {
        if other(key) && !is_stale {
            log::warn_once(format!("{} has no effect without a stale pipeline", key.setting().name));
        }
    }
}
