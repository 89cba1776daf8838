//! How busy the devices are, as NVML tells it: of the whole machine, whatever `CUDA_VISIBLE_DEVICES` hides.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its number on this machine.
    pub index: u32,
    /// What the vendor calls it.
    pub name: String,
    /// Identity that stays: `GPU-…`.
    pub uuid: String,
    /// Share of the last moments in which something ran on it, in percent; some devices do not tell.
    pub busy_percent: Option<u32>,
    /// Bytes in use.
    pub used_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

/// A connection to NVML.
#[derive(Debug)]
pub struct Meter(Nvml);

impl Meter {
    /// Opens it.
    ///
    /// # Errors
    /// What NVML says: mostly that the driver is not there.
    pub fn open() -> Result<Self, String> {
        Nvml::init().map(Self).map_err(|error| error.to_string())
    }

    /// Version of the driver, as its packages are numbered.
    ///
    /// # Errors
    /// What NVML says.
    pub fn driver_version(&self) -> Result<String, String> {
        self.0.sys_driver_version().map_err(|error| error.to_string())
    }

    /// All devices.
    ///
    /// # Errors
    /// What NVML says.
    pub fn read(&self) -> Result<Vec<Usage>, String> {
        let count = self.0.device_count().map_err(|error| error.to_string())?;
        self.read_of(&(0..count).collect::<Vec<_>>())
    }

    /// These devices. What is wrong with another one does not matter.
    ///
    /// # Errors
    /// What NVML says.
    pub fn read_of(&self, devices: &[u32]) -> Result<Vec<Usage>, String> {
        let one = |index: &u32| self.one(*index).map_err(|error| format!("GPU {index}: {error}"));
        devices.iter().map(one).collect()
    }

    fn one(&self, index: u32) -> Result<Usage, NvmlError> {
        let device = self.0.device_by_index(index)?;
        let memory = device.memory_info()?;
        Ok(Usage {
            index,
            name: device.name()?,
            uuid: device.uuid()?,
            busy_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
            used_bytes: memory.used,
            total_bytes: memory.total,
        })
    }
}
