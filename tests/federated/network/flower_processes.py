"""Start Flower's own programs on the loopback network, with certificates and keys made for the test."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[3]
APP = Path(__file__).parent / "flower_federation"
PROGRAMS = ("flower-superlink", "flower-supernode", "flwr", "openssl", "ssh-keygen")
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-nodes")


class Programs:
    """Everything lies in one folder; ``stop`` ends every program that was started, with its children."""

    def __init__(self, folder: Path):
        self.folder, self.running = folder, {}
        self.port = _free_port()
        self.environment = os.environ | {
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def make_authority(self, name: str) -> None:
        subject = ("-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE")
        self.run("openssl", "req", "-x509", *_CURVE, "-keyout", f"{name}.key", "-days", "2", *subject,
                 "-out", f"{name}.pem")  # fmt: skip

    def make_certificate(self, authority: str) -> None:
        subject = ("-subj", "/CN=superlink", "-addext", "subjectAltName=IP:127.0.0.1")
        self.run("openssl", "req", "-new", *_CURVE, "-keyout", "server.key", *subject, "-out", "server.csr")
        signed_by = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial")
        self.run("openssl", "x509", "-req", "-in", "server.csr", *signed_by, "-days", "2",
                 "-copy_extensions", "copy", "-out", "server.pem")  # fmt: skip

    def make_key(self, name: str) -> None:
        self.run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", name)

    def start_superlink(self, authority: str) -> None:
        (self.folder / "flower").mkdir()
        (self.folder / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.folder / authority}.pem"\n'
        )
        tls = ("--ssl-ca-certfile", f"{authority}.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile",
               "server.key")  # fmt: skip
        self.start("superlink", "flower-superlink", *tls, "--enable-supernode-auth", "--host", "127.0.0.1",
                   "--port", str(self.port), "--disable-runtime-dependency-installation")  # fmt: skip
        self.wait(lambda: "running on https" in self.log("superlink"), 120)

    def start_supernode(self, name: str, key: str | None, authority: str, *options: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        own_key = () if key is None else ("--auth-supernode-private-key", key)
        self.start(name, "flower-supernode", "--superlink", f"127.0.0.1:{self.port}", "--root-certificates",
                   f"{authority}.pem", *own_key, "--port", str(_free_port()), "--node-config",
                   f'site="{name}" state="{self.folder / name}"', *options)  # fmt: skip

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """SIGKILL to the program and its children, as when a machine loses power."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def stop(self) -> None:
        for name in list(self.running):
            if self.running[name].poll() is None:
                self.kill(name)

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def flwr(self, *arguments: str) -> dict:
        return json.loads(self.run("flwr", *arguments, "--format", "json"))

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            tails = "\n".join(
                f"--- {path.name}\n{self.log(path.stem)[-2000:]}" for path in self.folder.glob("*.log")
            )
            assert time.monotonic() < end, f"nothing after {seconds} seconds\n{tails}"
            time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
