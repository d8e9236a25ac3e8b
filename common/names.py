"""Names that constants take, apart from the code behind them: they are checked before torch is imported."""

ACTIVATIONS = {  # name -> its class in torch.nn, and what that is called with
    "relu": ("ReLU", {}),
    "leaky-relu": ("LeakyReLU", {"negative_slope": 0.05}),  # the paper's
    "swish": ("SiLU", {}),
}
STEMS = ("cifar", "imagenet")  # 3x3 convolution; 7x7 convolution of stride 2 and a max pool of stride 2

# study -> the column that is swept
SWEEPS = {"batch-size": "batch_size", "learning-rate": "learning_rate", "regularization": "regularization"}
# study -> what is to be sparse
SPARSITY = {"neuron-sparsity": "neuron", "weight-sparsity": "weight", "flops-sparsity": "flops"}
STRUCTURED = ("neuron-sparsity", "flops-sparsity")  # studies in which only whole channels count
MEASURES = {**SPARSITY, "imagenet": "weight"}

ACTIVATION_LABELS = {"relu": "ReLU", "leaky-relu": "Leaky ReLU", "swish": "Swish"}
SPARSITY_LABELS = {
    "neuron-sparsity": "Neuron sparsity",
    "weight-sparsity": "Weight sparsity",
    "flops-sparsity": "FLOPs removed",
}
COLUMN_LABELS = {
    "footing": "at equal",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "regularization": "λ",
}
