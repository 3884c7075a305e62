"""The lists of a bundle behind LitServe, for benchmarks/serving.py.

python benchmarks/litserve_service.py data/06_models/online_retail/sasrec 8001
"""

import sys
from typing import Any

import litserve

BATCH, K = 64, 10


class Lists(litserve.LitAPI):
    """Lists in batches, with the batching of LitServe."""

    def setup(self, device: str) -> None:
        """Load the bundle of the command line."""
        import recpipe

        self.model = recpipe.load_bundle(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> tuple[str, list[str]]:  # LitServe reads these types
        """Return user and history."""
        return request["user_id"], request["items"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Return the requests as they are."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Return the lists as they are."""
        return output

    def predict(self, users: list[tuple[str, list[str]]]) -> list[dict[str, Any]]:
        """Make the lists of a batch of users."""
        table = self.model.recommend({str(n): items for n, (_, items) in enumerate(users)}, K)
        lists: list[dict[str, Any]] = [{"user_id": user, "items": []} for user, _ in users]
        for row in table.select(["user_id", "rank", "item_id", "title", "score", "probability"]).to_pylist():
            lists[int(row.pop("user_id"))]["items"].append(row)
        return lists

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return a list in the layout of recpipe's service."""
        return {"lists": [output]}


if __name__ == "__main__":
    api = Lists(max_batch_size=BATCH, batch_timeout=0.002, api_path="/recommend")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", num_api_servers=1, generate_client_file=False)
