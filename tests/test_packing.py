from datasets import Dataset

from pipeline.data.packing import pack

_ = -100


def test_packing_by_hand():
    documents = [[1, 2, 3], [4, 5], [6, 7], [8]]
    labels = [[_, *ids[1:]] for ids in documents]
    dataset = Dataset.from_dict({"input_ids": documents, "labels": labels, "row": [40, 50, 60, 70]})
    packed = {
        "input_ids": [[1, 2, 3, 8], [4, 5, 6, 7]],
        "labels": [[_, 2, 3, _], [_, 5, _, 7]],
        "row": [[40, 70], [50, 60]],
        "seq_lengths": [[3, 1], [2, 2]],
    }
    assert pack(dataset, 4)[:] == packed
    assert (
        pack(Dataset.from_dict({key: values + values for key, values in dataset[:].items()}).select(range(4, 8)), 4)[:]
        == packed
    )  # a slice of a larger table
