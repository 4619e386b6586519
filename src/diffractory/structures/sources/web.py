"""How sources ask servers: again, where a refusal may pass."""

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

TIMEOUT = (10.0, 120.0)
"""Seconds to wait for the connection, and for the next bytes of an answer."""
RETRIES = 5
BACKOFF = 1.0
"""Seconds before the second retry, doubled with each further one."""


def patient_session() -> requests.Session:
    """Return a session that asks again where a server is busy or cannot be reached."""
    retry = Retry(
        RETRIES,
        backoff_factor=BACKOFF,
        status_forcelist=(429, 500, 502, 503, 504),
        raise_on_status=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session
