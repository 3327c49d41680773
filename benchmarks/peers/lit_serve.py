"""LitServe with dynamic batching.

Settings: `max_batch_size`, `batch_timeout_s` for which a batch waits to be full, `fast_queue`
(ZeroMQ between the HTTP process and the model's). One worker with the model, no time limit.
LitServe reads and writes pictures in the model's process. It parses every body as JSON: no raw
bytes.
"""

import litserve

from benchmarks.peers.device import Start
from benchmarks.peers.messages import Ask, Made


class Server(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = Start.read().pipeline()

    def decode_request(self, request: dict) -> Ask:
        return Ask.read(request)

    def batch(self, inputs: list[Ask]) -> list[Ask]:
        return list(inputs)

    def predict(self, x: list[Ask]) -> list[Made]:
        return self.pipeline.run(x)

    def unbatch(self, output: list[Made]) -> list[Made]:
        return output

    def encode_response(self, output: Made) -> dict:
        return output.fields()


def main() -> None:
    start = Start.read()
    settings = start.settings
    api = Server(
        max_batch_size=settings["max_batch_size"], batch_timeout=settings["batch_timeout_s"]
    )
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=1,
        timeout=False,
        fast_queue=settings["fast_queue"],
    )
    server.run(host="127.0.0.1", port=start.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
