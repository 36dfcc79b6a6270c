"""hfp's ClientApp, but for tasks to a partition of which the test folder has a file ``garbage-K``."""

import os
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hfp.flower import client

app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    return client.hello(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    if (Path(os.environ["HFP_TEST_FOLDER"]) / f"garbage-{context.node_config['partition-id']}").exists():
        noise = np.random.default_rng(0).integers(0, 255, 5000, dtype=np.uint8)
        records = {"header": ConfigRecord({"header": '{"version":1,"kind":"reply"}'})}
        return Message(RecordDict({**records, "body": ArrayRecord({"body": Array(noise)})}), reply_to=message)
    return client.train(message, context)
