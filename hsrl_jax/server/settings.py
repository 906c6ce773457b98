"""Settings of the server; each is a flag of `hsrl_jax.server`."""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the server; each is a flag.

  Attributes:
    folder: export that --mode=export wrote.
    host: address to listen at; 0.0.0.0 for all.
    port: port to listen at; 0 for any that is free.
    linger: seconds that a batch waits for more requests, while it is not full.
    max_body: bytes of a request, at most; else 413.
    max_queue: requests that wait, at most; else 503.
    timeout: seconds in which a head must be there (the connection is closed),
      then a body (408), and then an answer (503).
    watch: seconds between two looks at the folder.
    cache: folder for compiled code, so that the next start is quick; "": none.
    ids: how requests name items; `source`: by their ids in the source, `rows`:
      by their rows in the catalogue.
    store: where slates and feedback are kept, the path of an SQLite file or a
      URL that begins with postgresql://; "": nowhere.
    retention: days after which slates are deleted from the store, collected or
      not; 0: they stay.
    canary: share of users, by a hash of user_id, who get the newest version
      while the rest gets the one before; 0: all get the newest.
  """

  folder: pathlib.Path
  host: str = "127.0.0.1"
  port: int = 8000
  linger: float = 0.002
  max_body: int = 65_536
  max_queue: int = 1_024
  timeout: float = 5.0
  watch: float = 0.5
  cache: str = ""
  ids: str = "source"
  store: str = ""
  retention: float = 0.0
  canary: float = 0.0


IDS = ("source", "rows")
