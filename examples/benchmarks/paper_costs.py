"""The cost columns of table I of arXiv 2603.12591 from our own counts, beside the paper's.

python examples/benchmarks/paper_costs.py > examples/benchmarks/paper_costs.md
"""

from paper_cost_columns import BATCH, RULES, markdown, paper_costs

print(f"""# What a round costs: the columns of table I, counted

By `python examples/benchmarks/paper_costs.py`: thousands of parameters that a client sends / receives, then
multiply-accumulates (G) of one forward pass of {BATCH} images, the paper's "FLOPs". 32×32 images of 3 channels, 10
classes.
""")
for name, text in RULES.items():
    print(f"- **{name}**: {text}.")
for network in ("vgg16", "resnet32"):
    print(f"\n## {network}\n\n{markdown(paper_costs(network))}")
print("""
The paper's VGG16 rows are half of all channels. Its ResNet-32 rows fit neither rule at half and are nearest to a
quarter of all channels. Convolutions and products alone are counted; counting batch-norm too, as torch-pruning does,
adds 0.3 % to VGG16 and 0.9 % to ResNet-32. PruneFL is charged for as many weights as a submodel holds, taken evenly
from all layers: what a mask saves depends on where it prunes. FedProx runs the rest of the ratio's share of its
steps. DapperFL's dense steps are left out of the column, as in the paper; a run counts them.""")
