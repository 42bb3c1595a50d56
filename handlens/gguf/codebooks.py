"""The codebooks of the IQ block types: which points of a small lattice a stored index stands for.

The points were chosen by the authors of ggml (MIT licence, Copyright (c) 2023-2026 The ggml authors; tables
`iq2s_grid`, `iq3xxs_grid`, `iq3s_grid`, `ksigns_iq2xs` and `kvalues_iq4nl` of ggml-common.h) and are part of the file
format. ggml lists the points in rising order, the first coordinate being the lowest digit, so a table is fully told by
which lattice points it holds: one bit each, written here in base 85.
"""

import base64
from functools import cache

import numpy as np

_IQ2_S_POINTS = (
    "s;a7rs-mi>poprfiVC8tD4?h)DvAgSsvrP}hzJU*qN=K@s4Ak03aY9os;Vd|iU<O#AOMOeAPNWo0;sBps;Y_zfPey^svshY2m%5C0Dve6pa=i}"
    "00ICis)~xDs;H=nC@QL|qN=E%swe;oD1w3@pa3W!01Be2D5|O`DvAgKs;Ho<C?E<500JnWfG8jU2mk;As)`^giU<OL0062eAPNWo2mk;e2p|9m"
    "03ZMW001hAsEUH1Ab^MfDhh%EprC*#AOHvm0E!@h005u>BC05$swf}|2mk^opnxbK0Ehqp0HA;XAOIi$0001pC;$ow000620H`1U0000000;m8"
    "AOZjY03ZT@01B$AqN=K>C?bjqqN<>(swgUo2m*qrAc`m;3IG5Cs;a6gs)`Dtf&i+jC@P8w3W5Ltswf}|2mk^A00=0miVC8F03d(>DvAgKf&c)3"
    "0ssmK00IC2000003Zkm0s;Vd|iU0ztsGzDSAPNWo0w|z>C?EhR00020swgUo2m*ot0IDb;3J3rK0000eAOMH}0000004j<I0)henfB*mr2mk^A"
    "0000000;mG000000ssIaqNt#XC?Em|00O9>fG8jU2mlBGAb<cM0Du4h0Dy`pAPNWo0ssI2C?Eg`2mlBGAOIi$00000000O83J3rI000O80DuSp"
    "00IC20000000000AOHXW00IK2qKGIehzNp!0HUfWDvAICf&c=Dr~nEG0000004l183ZjAlpnw1>iU<ON004l1015~I3IG5A00008f`9;^fB*mh"
    "0s?>l0Du4j00000001BW0H6W@0Dz*Z2r7yQ0)hYlh$sLG2nYZG001Z;00;m800002DvAgKf&c)30ssmK00IC20001p2mk;82mlBG0007l00@8p"
    "000003IG5A0Ehqp0000000000000620EmbPDhL1o001C>000O803ZMW00<xgC;$KeB7gvj2mk^A0001h0tf&I000000000000000AOHXW00062"
    "0ssI20001h000000ssIY0007jD1ZO}00;m8fB"
)

_IQ3_XXS_POINTS = (
    "s8OImAOHXqP@qJhKnMVUs6e1m06_o*L7)Tx0001h01yBH2mt^TK>z?C03ZMW00004000O80Ez$r5CA{`P@qt#0e}Dipg^Di00000P@q770000W"
    "pa6hC0ssO4L;wH)0Du4h004*p0ssI&1ONa400000001BWfB*mhpirVfAOHXWRG>hB000qyph2JkfCK;lK!^YU0001p0000401yBG5C8!HKmY&;"
    "0000000000Pyzq|1ONa4K%h_n0DuG_pa6hC3IG5AP=Evg03ZM$06+i`000000001h0RR9Xf&d@@00aO400;mA000mG0000G004jh2mt^E01*HH"
    "0000000008004jifB=F30RR911ONa42mk;806+);000C45C8yx00000000001fT$b0000003ZMWKmY)Mf&c;l00aO400;me0000WAOHXW01yBG"
    "0Duty0000WAOHYB00000000000Du4h000O8AOHXW000O83IGTI002M$002M$00961000O80001j00000000002mk;81ONa403ZMW0000G00000"
    "5CA{`000006@UOB03ZMW00062fB*mh03ZMW1RwwafCK;#004jh002M$KmY&$pa2K}000000001h000000000000000"
)

_IQ3_S_POINTS = (
    "<?6%`rBI+r=){pk2mnMN#gasbB~Sp65JaF-2%rH(fDuR_kU#){C;*}mMF0X20#E=z03ZNBr~sl60Ehqp=+&S~017}L(uhEiK%fAEfF+0^kOY7r"
    "NsvK^KmZ_s6es{tB8UJ0K#)M706+i$004;q3IG5AP@q5rKmZ_s)v8gTRG<Nrpphg<AV2^BNdQoRKoI~)q(CT8Ab<h@K>&~>KmY(F2tXhKfDizH"
    "p#VSt00ck)1V93S5P$#xAXOk#DL@cFR0vQ2fB=9ZfFOV<0Du4hK!{O*Q3L=G5JDh803e6}K%fL52m$~Q00IC2KmY&$PynC=00000h#-j|K!5;%"
    "Ay6QM5JUg~P=r7bfB_(Y2vDFz00000pa2K~fB*nM1pq(*001BW01yBO004jh0E7U55I_I`Ac!CUi68<9R3Jbg0000WfItv}01yBGA%Fn@2tWi7"
    "NC1E!0ssI203ZSY08jt`00000AOHXWC;%V;0000008{`_004jhfB=C2000O803ZMeAOs+QfCxYUfB*mh000C45C9+mkN^M(004jh1ONa4fB*mh"
    "08jt`00000i2$GifCwM}AV3HJ6aWAKNP<9s06+i$AOHX)01yBGL=b=g0Du4h001BWAOHXWAOHYB00000fB*mh00000"
)


def _points(bitmap: str, levels: tuple[int, ...], width: int) -> np.ndarray:
    """The marked points of the lattice levels^width, float32 [points, width], in rising order."""
    marks = np.unpackbits(np.frombuffer(base64.b85decode(bitmap), np.uint8), count=len(levels) ** width)
    digits = np.flatnonzero(marks)[:, None] // len(levels) ** np.arange(width) % len(levels)
    return np.array(levels, np.float32)[digits]


@cache
def iq2_s_grid() -> np.ndarray:
    """The magnitudes of eight weights for each 10-bit index of IQ2_S, float32 [1024, 8]."""
    return _points(_IQ2_S_POINTS, (8, 25, 43), 8)


@cache
def iq3_xxs_grid() -> np.ndarray:
    """The magnitudes of four weights for each 8-bit index of IQ3_XXS, float32 [256, 4]."""
    return _points(_IQ3_XXS_POINTS, (4, 12, 20, 28, 36, 44, 52, 62), 4)


@cache
def iq3_s_grid() -> np.ndarray:
    """The magnitudes of four weights for each 9-bit index of IQ3_S, float32 [512, 4]."""
    return _points(_IQ3_S_POINTS, (1, 3, 5, 7, 9, 11, 13, 15), 4)


@cache
def even_signs() -> np.ndarray:
    """The signs of eight weights for each 7-bit index, float32 [128, 8].

    Seven bits are stored, and the eighth makes the number of minus signs even.
    """
    bits = np.arange(128)[:, None] >> np.arange(7) & 1
    bits = np.concatenate([bits, bits.sum(axis=1, keepdims=True) & 1], axis=1)
    return (1 - 2 * bits).astype(np.float32)


@cache
def iq4_levels() -> np.ndarray:
    """The sixteen unevenly spaced levels of IQ4_NL and IQ4_XS, float32 [16]."""
    return np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
