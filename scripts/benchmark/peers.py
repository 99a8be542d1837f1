"""The peers, each through its own `fit`, with what slows them and can be switched off switched off.

All: tensors in memory, one process, `Adam(fused=True)` but for Keras, which has an Adam of its own; validation in batches of
1,024 with loss and accuracy; no logger, no checkpoints, no progress bar (dlrun has all three).
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmark.loops import loaders
from benchmark.pace import Pace
from benchmark.workload import EVALUATION_BATCH, LEARNING_RATE, Problem, Workload


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the peers."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)


def lightning(workload: Workload, pace: Pace) -> None:
    """Lightning on TensorDatasets."""
    import lightning as L

    problem = Problem.make(workload)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = problem.model

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adam(self.model)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            outputs = self.model(batch[0])
            right = (outputs.argmax(1) == batch[1]).float().mean()
            self.log_dict({"loss": F.cross_entropy(outputs, batch[1]), "accuracy": right}, batch_size=len(batch[1]))

    class Turns(L.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            pace.epoch_start()

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            pace.train_end()

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            pace.validated(trainer.callback_metrics["loss"], trainer.callback_metrics["accuracy"])

    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    trainer = L.Trainer(
        accelerator="gpu" if workload.device == "cuda" else "cpu",
        devices=1,
        max_epochs=workload.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Turns()],
    )
    trainer.fit(Module(), *loaders(problem))
    pace.epoch_start()


def ignite(workload: Workload, pace: Pace) -> None:
    """Ignite's supervised trainer and evaluator."""
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Accuracy, Loss

    problem = Problem.make(workload)

    model, device, criterion = problem.model, problem.device, nn.CrossEntropyLoss()
    train, val = loaders(problem)
    trainer = create_supervised_trainer(
        model, adam(model), criterion, device, output_transform=lambda x, y, y_pred, loss: loss.detach()
    )
    evaluator = create_supervised_evaluator(
        model, {"accuracy": Accuracy(device=device), "loss": Loss(criterion, device=device)}, device
    )

    @trainer.on(Events.EPOCH_STARTED)
    def _started(engine: Any) -> None:
        pace.epoch_start()

    @trainer.on(Events.EPOCH_COMPLETED)
    def _completed(engine: Any) -> None:
        pace.train_end()
        evaluator.run(val)
        pace.validated(evaluator.state.metrics["loss"], evaluator.state.metrics["accuracy"])

    trainer.run(train, max_epochs=workload.epochs)
    pace.epoch_start()


def skorch(workload: Workload, pace: Pace) -> None:
    """skorch's NeuralNetClassifier; it reads the loss of every step."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback
    from skorch.dataset import Dataset
    from skorch.helper import predefined_split

    problem = Problem.make(workload)

    class Turns(Callback):
        training = True

        def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
            self.training = True
            pace.epoch_start()

        def on_batch_begin(self, net: Any, batch: Any = None, training: bool = True, **kwargs: Any) -> None:
            if self.training and not training:
                self.training = False
                pace.train_end()

        def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
            pace.validated(net.history[-1, "valid_loss"], net.history[-1, "valid_acc"])

    net = NeuralNetClassifier(
        problem.model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        lr=LEARNING_RATE,
        batch_size=workload.batch,
        max_epochs=workload.epochs,
        iterator_train__shuffle=True,
        iterator_valid__batch_size=EVALUATION_BATCH,
        train_split=predefined_split(Dataset(problem.val_inputs, problem.val_targets)),
        classes=list(range(10)),
        callbacks=[("turns", Turns())],
        callbacks__print_log=None,
        device=workload.device,
        verbose=0,
    )
    net.fit(problem.inputs, problem.targets)
    pace.epoch_start()


def keras(workload: Workload, pace: Pace) -> None:
    """Keras 3 on PyTorch: the same module in a TorchModuleWrapper, arrays, Keras's own Adam."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as K

    problem = Problem.make(workload)

    class Turns(K.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            pace.epoch_start()

        def on_test_begin(self, logs: Any = None) -> None:
            pace.train_end()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            pace.validated(logs["val_loss"], logs["val_accuracy"])

    with K.device("gpu" if workload.device == "cuda" else "cpu"):
        wrapped = K.layers.TorchModuleWrapper(problem.model)
        model = K.Sequential([K.Input(tuple(problem.inputs.shape[1:])), wrapped])
        loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=K.optimizers.Adam(LEARNING_RATE), loss=loss, metrics=["accuracy"])
        model.fit(
            problem.inputs.cpu().numpy(),
            problem.targets.cpu().numpy(),
            batch_size=workload.batch,
            epochs=workload.epochs,
            validation_data=(problem.val_inputs.cpu().numpy(), problem.val_targets.cpu().numpy()),
            validation_batch_size=EVALUATION_BATCH,
            callbacks=[Turns()],
            verbose=0,
        )
    pace.epoch_start()
