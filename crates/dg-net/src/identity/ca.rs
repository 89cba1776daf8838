//! Making certificates.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use super::passport::validity;
use super::{Fingerprint, IdentityError, Name, Passport, Role};
use crate::endpoint::tls::{client_verifier, provider};

/// The certificate authority of a cluster: an ECDSA P-256 key, and a certificate that allows no other authority below it.
pub struct Ca {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate of the cluster with its key.
#[derive(Clone)]
pub struct Identity {
    ca: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: Arc<PrivateKeyDer<'static>>,
    passport: Passport,
    /// All three, as they are saved.
    pem: String,
}

// === impl Ca ===

impl Ca {
    /// A new one, valid for ten years.
    pub fn create(now: SystemTime) -> Result<Self, IdentityError> {
        let key = new_key()?;
        let mut params = params(now, CA_DAYS)?;
        params.distinguished_name.push(DnType::CommonName, "dg-cluster CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(|e| IdentityError::crypto("signing the CA", e))?;
        let (certificate_pem, certificate) = (certificate.pem(), certificate.der().clone());
        Ok(Self { certificate, certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// From certificate and key in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let failed = |e: &dyn fmt::Display| IdentityError::crypto("reading the CA", e);
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| failed(&e))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| failed(&e))?;
        keys_match(&certificate, &key).map_err(|e| failed(&e))?;
        let key = KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).map_err(|e| failed(&e))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| failed(&e))?;
        let blocks = pem.split_inclusive("-----END CERTIFICATE-----\n");
        let certificate_pem = blocks.take(1).collect();
        Ok(Self { certificate, certificate_pem, issuer })
    }

    /// A new key and its certificate, valid for 90 days. The role of the name `head` is [`Role::Head`], and of no other.
    pub fn issue(&self, name: &Name, role: Role, now: SystemTime) -> Result<Identity, IdentityError> {
        let key = new_key()?;
        let certificate = self.sign(name, role, &key, now)?;
        Identity::from_pem(&format!("{certificate}{}{}", self.certificate_pem, key.serialize_pem()))
    }

    /// The certificate, in PEM, for a node's own key. Of the request only the key counts, and that the sender has it.
    pub fn sign_request(
        &self,
        request: &[u8],
        name: &Name,
        now: SystemTime,
    ) -> Result<String, IdentityError> {
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(|e| IdentityError::crypto("reading the certificate request", e))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(IdentityError::crypto(
                "reading the certificate request",
                "its key is not ECDSA P-256",
            ));
        }
        self.sign(name, Role::Node, &request.public_key, now)
    }

    /// Its own certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its own certificate, in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// When it begins and ends to be valid.
    pub fn validity(&self) -> Result<(SystemTime, SystemTime), IdentityError> {
        validity(&self.certificate)
    }

    /// By which a join token pins it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Certificate and key, as they are saved.
    pub(super) fn pem(&self) -> String {
        format!("{}{}", self.certificate_pem, self.issuer.key().serialize_pem())
    }

    fn sign(
        &self,
        name: &Name,
        role: Role,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<String, IdentityError> {
        if name.is_head() != (role == Role::Head) {
            return Err(IdentityError::Certificate {
                what: format!("of the {role} cannot be for the name `{name}`"),
                hint: "the head is called `head`, and nothing else is",
            });
        }
        let mut params = params(now, CERTIFICATE_DAYS)?;
        let domain =
            name.domain().try_into().map_err(|e| IdentityError::crypto("naming the certificate", e))?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(domain)];
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Head | Role::Node => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        let signed = params.signed_by(key, &self.issuer);
        Ok(signed.map_err(|e| IdentityError::crypto("signing the certificate", e))?.pem())
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({})", self.fingerprint())
    }
}

// === impl Identity ===

impl Identity {
    /// From its certificate, the CA's certificate and its key, in this order, in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let failed = |e: &dyn fmt::Display| IdentityError::crypto("reading certificate and key", e);
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).take(3).collect();
        let certificates: [CertificateDer<'static>; 2] = certificates
            .map_err(|e| failed(&e))?
            .try_into()
            .map_err(|_| failed(&"there are not two certificates, its own and the CA's"))?;
        let [certificate, ca] = certificates;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| failed(&e))?;
        keys_match(&certificate, &key).map_err(|e| failed(&e))?;
        let passport = Passport::read(&certificate)?;
        Ok(Self { ca, certificate, key: Arc::new(key), passport, pem: pem.to_owned() })
    }

    /// Whether its CA signed it and it is valid at `now`.
    pub fn check(&self, now: SystemTime) -> Result<(), IdentityError> {
        let verifier =
            client_verifier(&self.ca, true).map_err(|e| IdentityError::crypto("trusting the CA", e))?;
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let verified = verifier.verify_client_cert(&self.certificate, &[], now);
        verified.map(drop).map_err(|e| IdentityError::Certificate {
            what: format!("of `{}` is not good: {e}", self.passport.name()),
            hint: "issue it again (`dg-cluster certs renew`), and compare the clocks",
        })
    }

    /// What its certificate says.
    pub const fn passport(&self) -> &Passport {
        &self.passport
    }

    /// Its certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate of the CA that it trusts.
    pub const fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// Its key.
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("passport", &self.passport).finish_non_exhaustive()
    }
}

/// A key of the kind that all certificates here have.
pub(crate) fn new_key() -> Result<KeyPair, IdentityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| IdentityError::crypto("making a key", e))
}

/// A request for a certificate, in DER. It says no more than that the sender has the key.
pub(crate) fn request(key: &KeyPair) -> Result<Vec<u8>, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key);
    Ok(request.map_err(|e| IdentityError::crypto("making the certificate request", e))?.der().to_vec())
}

fn params(now: SystemTime, days: u64) -> Result<CertificateParams, IdentityError> {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |since: Duration| epoch.checked_add(since.try_into().ok()?);
    let late = || IdentityError::crypto("dating the certificate", "the clock is out of range");
    let mut params = CertificateParams::default();
    params.not_before = at(since.saturating_sub(CLOCK_SLACK)).ok_or_else(late)?;
    params.not_after = at(since + Duration::from_secs(days * 86_400)).ok_or_else(late)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

fn keys_match(
    certificate: &CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
) -> Result<(), rustls::Error> {
    CertifiedKey::from_der(vec![certificate.clone()], key.clone_key(), &provider()).map(drop)
}

const CA_DAYS: u64 = 3650;
const CERTIFICATE_DAYS: u64 = 90;

/// How far the clocks of two nodes may be apart.
const CLOCK_SLACK: Duration = Duration::from_secs(5 * 60);
